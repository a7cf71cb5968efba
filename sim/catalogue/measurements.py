"""Published figures for the comparison with simulated ones: facts with sources."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sim.hardware.chip import ChipField, Precision
from sim.hardware.topology import Topology, TopologyField
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.files import load_text, shorten
from sim.inputs.names import catalogue_names
from sim.inputs.values import Sourced, Text, Value
from sim.units import Count, Fraction, Seconds, Tokens, TokensPerSecond, brief


class PublishedSpeed(Value):
    """The published speed of one user, without speculative decoding.

    chips: None if not published.
    run_by: the catalogue's engine of the same generation.
    paced: the service throttled its speed, so the hardware is at least as fast.
    """

    id: str
    model: str
    chip: str
    chips: Count | None = None
    engine: str
    run_by: str
    weights: str
    speed: TokensPerSecond
    date: str
    source: str
    paced: bool = False

    @property
    def bits(self) -> int:
        """The bits of a weight, from texts as '8-bit', 'bf16', 'fp8'."""
        return int("".join(filter(str.isdigit, self.weights)))


class PublishedSpeeds(Value):
    """A file of published speeds."""

    id: str
    note: str = ""
    points: tuple[PublishedSpeed, ...]


def published_speeds(
    model: str, chip: str, chips: int, engine: str, weights: str
) -> list[PublishedSpeed]:
    """Return the published single-user speeds of a model on chips.

    The engine is of the same generation, and the weights have as many bits.
    A figure without a published number of chips matches every number.
    """
    points = read_value(catalogue_names("measurements")["single-user"], PublishedSpeeds).points
    alike = (model, chip, engine, 8 * Precision(weights).bytes)
    return [
        p
        for p in points
        if (p.model, p.chip, p.run_by, p.bits) == alike and p.chips in (chips, None)
    ]


Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MessagePoint(Value):
    """A row of a table: a published figure of messages between chips, and its simulation.

    on, software: one of the file's `systems`, with `chips` chips, and one of its `software`.
    simulates: a collective is of the first `group` chips.  A `send` goes from the first of them
    to the last, `farthest` from the one in the middle to the farthest.
    status: `given` if a number of the simulator is this figure, `fitted` if one was fitted to
    it, else `free`.
    reason: why it is not simulated, or why the simulation differs much.
    """

    model_config = ConfigDict(strict=False)  # a table's cells are texts

    id: str
    system: str
    operation: str
    n_devices: str = ""
    message_bytes: str = ""
    latency_us: Size | None = None
    bandwidth_GBps: Size | None = None  # noqa: N815
    mode: str = ""
    source_url: str
    confidence: str
    notes: str = ""
    simulates: Literal["all_reduce", "all_gather", "all_to_all", "send", "farthest"] | None = None
    on: str | None = None
    software: str | None = None
    chips: Count | None = None
    group: Count | None = None
    bytes: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    status: Literal["free", "fitted", "given"] | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.latency_us is None and self.bandwidth_GBps is None:
            raise ValueError(f"{self.id} has neither latency_us nor bandwidth_GBps")
        named = {
            key: getattr(self, key)
            for key in ("simulates", "on", "software", "chips", "group", "bytes", "status")
        }
        lacking = [key for key, value in named.items() if value is None]
        if lacking and len(lacking) < len(named):
            raise ValueError(f"{self.id} does not say its {', '.join(lacking)}")
        if lacking and not self.reason:
            raise ValueError(
                f"{self.id} says neither what simulates it nor the reason why nothing does"
            )
        return self


class Fabric(Sourced):
    """Chips joined by the topology of the chip's file, or by one of its own."""

    chip: ChipField | None = None
    topology: TopologyField | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.chip is None) == (self.topology is None):
            raise ValueError("a system has either a chip or a topology")
        return self

    def joined(self, chips: int) -> Topology:
        """Return the topology of `chips` chips.  Raises: ValueError if it cannot join them."""
        topology = self.chip.topology if self.chip else self.topology
        assert topology is not None
        return topology.sized(chips)


class Software(Sourced):
    """The time that software adds to a message, or to each phase of a collective.

    launch: time in which the host starts a collective.  Chips wait for the host, so a collective
    takes the longer of both.
    """

    latency: Seconds
    latency_per_chip: Seconds
    efficiency: Fraction
    launch: Seconds


def read_csv_table(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Return the head of a CSV file, and its rows with their places.

    Raises: ScenarioError if two columns have one name, or a row has more or fewer cells.
    """
    shown = shorten(path)
    text = load_text(path, shown).removeprefix("\ufeff")  # the mark with which Excel begins a file
    lines = text.splitlines()
    blank = next((n for n, line in enumerate(lines) if line.strip()), 0)  # lines above the head
    reader = csv.DictReader(lines[blank:])
    head = list(reader.fieldnames or ())
    if twice := [name for name in head if name and head.count(name) > 1]:
        raise ScenarioError(
            f"{shown}:{blank + 1}: got column {brief(twice[0])!r} {head.count(twice[0])} times;"
            " expected it once; try leaving the others out"
        )
    rows: list[tuple[str, dict[str, str]]] = []
    for row in reader:
        where = f"{shown}:{blank + reader.line_num}"
        if None in row or None in row.values():
            raise ScenarioError(
                f"{where}: the row has more or fewer cells than the head of the table"
            )
        rows.append((where, row))
    return head, rows


@contextmanager
def errors_at_row(where: str) -> Iterator[None]:
    """Turn an error in a row into one line with its place.

    Raises: ScenarioError if the body raises a ValueError.
    """
    try:
        yield
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        column, reason = (
            ".".join(map(str, problem["loc"])),
            problem["msg"].removeprefix("Value error, "),
        )
        raise ScenarioError(f"{where}: {column + ': ' if column else ''}{reason}") from None
    except ValueError as error:
        raise ScenarioError(f"{where}: {error}") from None


def read_message_points(value: object) -> object:
    """Return the rows of the CSV file that a text names, in the folder of its own file.

    Raises: ScenarioError for the first wrong row.
    """
    if not isinstance(value, Text):
        return value
    points: dict[str, MessagePoint] = {}
    for where, row in read_csv_table(value.folder / value)[1]:
        with errors_at_row(where):
            point = MessagePoint.model_validate({key: cell for key, cell in row.items() if cell})
        if point.id in points:
            raise ScenarioError(f"{where}: {point.id} is there twice")
        points[point.id] = point
    return tuple(points.values())


class NetworkMeasurements(Value):
    """A file of published latencies and bandwidths between chips."""

    id: str
    note: str = ""
    points: Annotated[tuple[MessagePoint, ...], BeforeValidator(read_message_points)]
    systems: Mapping[str, Fabric]
    software: Mapping[str, Software]

    @model_validator(mode="after")
    def _named(self) -> Self:
        for point in self.points:
            if point.on is not None and point.on not in self.systems:
                raise ValueError(
                    f"{point.id} is on {point.on!r}, and the systems are {', '.join(self.systems)}"
                )
            if point.software is not None and point.software not in self.software:
                raise ValueError(
                    f"{point.id} is with {point.software!r}, and the software is "
                    f"{', '.join(self.software)}"
                )
        return self


class PublishedSpeedups(Value):
    """The speed-ups of one system by drafts, for numbers of users of a closed loop.

    system: keys of a system with `model` and `speculate`, as a scenario has them.
    users: numbers of users, or sequences of a batch. speedups: token throughput over that without
    drafts, for each number of users.
    status: `fitted`: a number of the engine was fitted to them; `tested`: none was; `assumed`: the
    acceptance is not published. reason: what is assumed, and which errors are known.
    """

    id: str
    system: dict[str, object]
    prompt: Tokens
    output: Tokens
    users: tuple[Count, ...]
    speedups: tuple[Annotated[float, Field(gt=0)], ...]
    status: Literal["fitted", "tested", "assumed"]
    reason: str
    source: str

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(self.users) != len(self.speedups):
            raise ValueError(
                f"got {len(self.speedups)} speedups for {len(self.users)} users; expected one each"
            )
        return self


class SpeculationMeasurements(Value):
    """A file of published speed-ups by drafts. against: what they are compared with."""

    id: str
    note: str = ""
    against: str
    points: tuple[PublishedSpeedups, ...]


class PublishedSteps(Value):
    """The times of decode steps of one system, over its number of chips.

    system: keys of a system with `model`, or of attention and FFN pools, as a scenario has them.
    chips: of the system or of its attention pool; `attention_data` is as many.
    sequences: of each of these chips. context: positions of each sequence. times: of a step [s].
    status, reason: as of `PublishedSpeedups`; `listed`: another model of points that count already.
    """

    id: str
    model: str
    system: dict[str, object]
    chips: tuple[Count, ...]
    sequences: tuple[Count, ...]
    context: Tokens
    times: tuple[Seconds, ...]
    status: Literal["fitted", "tested", "assumed", "listed"]
    reason: str
    source: str

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if not len(self.chips) == len(self.sequences) == len(self.times):
            raise ValueError(
                f"got {len(self.times)} times and {len(self.sequences)} sequences for "
                f"{len(self.chips)} numbers of chips; expected one of each"
            )
        return self


class StepMeasurements(Value):
    """A file of measured decode steps. steps: what the steps are of."""

    id: str
    note: str = ""
    steps: str
    points: tuple[PublishedSteps, ...]


class Rule(Value):
    """The options of rows of a table that the rows themselves leave out.

    when: by column, the texts with one of which a cell begins.
    system: options by dotted key; also chip and chips if the table has none. null: the default.
    exclude: why such rows are not simulated.
    remark: why such rows are known to differ much.
    bound: why their times are upper bounds, as a throttle or load of the service.  The hardware
    is at least as fast.
    host: the service whose client, HTTP and tokenizer a TTFT includes.
    one_less: the server had one place fewer than users.
    prefill: whether the latency includes the prefill.
    chips_fitted_to: the deployment (provider, model, half-year) whose beat the number of chips
    was chosen to match.
    not_scored: metrics that are only listed, with the reason.
    not_fitted: why no engine is fitted to such rows.
    """

    when: dict[str, tuple[str, ...]]
    system: Mapping[str, str | bool | int | float | None] = {}
    exclude: str = ""
    assumed: str = ""
    remark: str = ""
    bound: str = ""
    host: str = ""
    one_less: bool = False
    prefill: bool = True
    chips_fitted_to: str = ""
    not_scored: Mapping[str, str] = {}
    not_fitted: str = ""
    source: str

    def holds(self, row: Mapping[str, str]) -> bool:
        """Return whether the rule is for a row."""
        return all(
            row.get(key, "").lower().startswith(tuple(map(str.lower, texts)))
            for key, texts in self.when.items()
        )


class Rules(Value):
    """A file of rules for the rows of tables."""

    id: str
    note: str = ""
    rules: tuple[Rule, ...]
