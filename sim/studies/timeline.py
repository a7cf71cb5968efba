"""A timeline of every chip and link while a single request gets some tokens, also for Perfetto.

chrome_json(trace(sim.read("llama2-70b-lpu-vs-h100"), "lpu", tokens=3))
"""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sim.chipsim.machine import ChipMachine, Machine, TimelineSlice, collecting_factory
from sim.chipsim.network import CableUse
from sim.cost.program import CollectiveOp, Program, program
from sim.cost.step import Costs
from sim.cost.work import decodes_at
from sim.hardware.topology import Hop
from sim.inputs.errors import UserError
from sim.inputs.key_paths import JsonObject
from sim.inputs.suggestions import unknown_name
from sim.planning.deployment import Deployment
from sim.scenario.layout import deploy_fitting
from sim.scenario.pools import both_pools, key_path, plain_systems
from sim.scenario.replicas import chip_machines
from sim.scenario.scenario import Scenario
from sim.scenario.system import Fleet
from sim.serving.service import serve
from sim.units import Seconds
from sim.workload.requests import RequestBatch

MOST_EVENTS = 1_000_000  # Perfetto shows that many with ease


class LinkUses(NamedTuple):
    """A link, its uses, and the stage of the chip that it comes from (None for a switch or bus)."""

    name: str
    stage: int | None
    uses: list[CableUse]


@dataclass(frozen=True, eq=False)
class Timeline:
    """A record of the slices of time of each chip and each link, from `start` to `end`.

    All times are seconds of the simulated clock. The chips of all stages have numbers in a row.
    first_chips: the first chip of each stage; empty if all stages have `stage_size` chips.
    """

    system: str  # its label
    identity: str  # model, chips, engine
    stage_size: int  # chips of a stage
    stages: tuple[str, ...]
    chips: list[TimelineSlice]
    links: list[LinkUses]
    tokens: list[Seconds]  # when a token left the last stage
    prompt: int
    start: Seconds
    end: Seconds
    first_chips: tuple[int, ...] = ()

    def stage_of(self, chip: int) -> int:
        """Return the stage of a chip."""
        if not self.first_chips:
            return chip // self.stage_size
        return bisect_right(self.first_chips, chip) - 1


def step_program(scenario: Scenario, name: str) -> tuple[Deployment, Program]:
    """Return a system's deployment, and its program of a decode step amid a mean request.

    Raises: UserError if there is no such system; PlanError if it does not fit.
    """
    deployment = _traced_deployment(scenario, name)
    context = round(scenario.workload.mean_prompt + scenario.workload.mean_output / 2)
    work = decodes_at(1, context, deployment.layout.model.window)
    return deployment, program(Costs(deployment.layout), work)


def _traced_deployment(scenario: Scenario, name: str) -> Deployment:
    """Return the deployment of a plain system.

    Raises: UserError if there is no such system; PlanError if it does not fit.
    """
    plain, both = plain_systems(scenario.systems), both_pools(scenario.systems)
    if name not in {*scenario.systems, *plain, *both}:
        raise unknown_name("--system", name, dict.fromkeys([*scenario.systems, *plain, *both]))
    if name in both:
        raise UserError(
            f"trace: systems.{name}: got attention and FFN pools; expected a system of one pool; "
            "try sramsim trace without --program"
        )
    if name not in plain:
        first = key_path(scenario.systems, next(iter(scenario.members(name))))
        kind = "a fleet" if isinstance(scenario.systems[name], Fleet) else "a pair of pools"
        raise UserError(
            f"--system: got {name}, which is {kind}; expected one of its members;"
            f" try --system {'.'.join(first)}"
        )
    if (speculate := scenario.plain(name).speculate) and speculate.tokens:
        raise UserError(
            f"trace: systems.{name}: got speculate; expected a system without drafts;"
            f" try --set systems.{name}.speculate.tokens=0"
        )
    return deploy_fitting(scenario, name)


def trace(scenario: Scenario, name: str, tokens: int, prefill: bool = False) -> Timeline:
    """Return the timeline of a single request with the mean prompt, at chip fidelity.

    tokens: how many it gets after its first.  prefill: whether the prompt is in the timeline.
    Raises: UserError if there is no such system, the context is too short, or a trace would have
    too many events; PlanError if the system does not fit.
    """
    deployment = _traced_deployment(scenario, name)
    prompt, layout = round(scenario.workload.mean_prompt), deployment.layout
    if prompt + tokens + 1 > deployment.limits.context:
        raise UserError(
            f"trace: got {prompt + tokens + 1} tokens; expected at most"
            f" {deployment.limits.context}, the model's context; try fewer --tokens"
        )
    steps = tokens + (-(-prompt // deployment.limits.token_budget) if prefill else 0)
    events = steps * _step_events(deployment, step_program(scenario, name)[1])
    require_few_events(events, steps)
    made: list[ChipMachine] = []
    machine = collecting_factory(chip_machines(scenario, name, deployment, recording=True), made)
    single = RequestBatch(np.zeros(1), np.array([prompt]), np.array([tokens + 1]))
    limits, longest = deployment.limits, prompt + tokens + 1
    limits = replace(limits, kv_tokens=longest + limits.state_tokens, context=longest)
    if not prefill:
        # The prompt is not shown, so let it pass in one step. Token by token takes minutes.
        limits = replace(limits, token_budget=max(limits.token_budget, prompt))
    rows = serve(single, deployment.costs, limits, machine=machine)
    start = 0.0 if prefill else float(rows.first_token[0])
    names, (used,) = layout.block_labels, made
    assert isinstance(used, Machine)
    return Timeline(
        system=scenario.plain(name).full_label or name,
        identity=f"{layout.model.id} on {deployment.chips} x {layout.chip.id}, {layout.engine.id}",
        stage_size=layout.plan.stage_size,
        stages=tuple(dict.fromkeys(f"{names[s.first]} to {names[s.last]}" for s in layout.stages)),
        chips=[part for part in used.slices if part.start >= start],
        links=list(_links(used, layout.plan.stage_size, start)),
        tokens=[left for left in used.left if left >= rows.first_token[0]],
        prompt=prompt,
        start=start,
        end=float(rows.last_token[0]),
    )


def require_few_events(events: int, steps: int) -> None:
    """Raise UserError if a timeline of so many steps would have too many events."""
    if events > MOST_EVENTS:
        raise UserError(
            f"trace: got about {events:,} events in {steps} steps;"
            f" expected at most {MOST_EVENTS:,}; try fewer --tokens"
        )


def _links(machine: Machine, stage_size: int, start: Seconds) -> Iterator[LinkUses]:
    """Yield the uses of each link after `start`; links of switches come first.

    stage_size: chips of a stage.
    """

    def origin(hop: Hop) -> int:
        return hop[0] if isinstance(hop[0], int) else -1

    for hop, cable in sorted(
        machine.network.cables.items(), key=lambda item: (origin(item[0]), item[1].name)
    ):
        uses = [use for use in cable.uses or [] if use.start >= start]
        if uses:
            yield LinkUses(
                cable.name, origin(hop) // stage_size if origin(hop) >= 0 else None, uses
            )


def _step_events(deployment: Deployment, steps: Program) -> int:
    """Return about how many slices one step adds to a timeline."""
    topology, stage_size = deployment.layout.topology, deployment.layout.plan.stage_size
    known: dict[tuple[object, ...], int] = {}
    count = 0
    for instructions in steps.stages:
        count += stage_size * (len(instructions) + 1)
        for op in (op for op in instructions if isinstance(op, CollectiveOp)):
            operation, groups, _, (algorithm, *_), *_ = op.exchange
            key = (operation, algorithm, len(groups[0]))
            if key not in known:
                known[key] = sum(map(len, topology.messages(operation, groups[0], algorithm)))
            count += known[key] * len(groups)
    return count


def chrome_json(timeline: Timeline) -> str:
    """Return the timeline as Chrome's trace events (JSON object format), for ui.perfetto.dev.

    Each stage is a process with a track for each chip.  The links that come from its chips are
    another process, with a track for each link.
    Source: Google, 'Trace Event Format'.
    """
    lines = (json.dumps(event, separators=(",", ":")) for event in chrome_events(timeline))
    return '{"displayTimeUnit":"ns","traceEvents":[\n' + ",\n".join(lines) + "\n]}\n"


def chrome_events(timeline: Timeline) -> list[JsonObject]:
    """Return names first, then events by time: slices (X), counters (C), instants (i)."""
    stages = len(timeline.stages)
    chips = [(1 + timeline.stage_of(part.chip), part.chip, part) for part in timeline.chips]
    named: dict[int, str] = {0: timeline.system}
    tracks: dict[tuple[int, int], str] = {}
    events: list[JsonObject] = []

    def tick(time: Seconds) -> int:
        """Return whole picoseconds since the start.

        With fractions, neighbours on a track would overlap by a rounding error.
        """
        return round((time - timeline.start) * 1e12)

    def complete(pid: int, tid: int, name: str, kind: str, start: Seconds, end: Seconds) -> None:
        begun = tick(start)
        times = {"ts": begun / 1e6, "dur": (tick(end) - begun) / 1e6}
        events.append({"ph": "X", "pid": pid, "tid": tid, **times, "name": name, "cat": kind})

    def count(at: int, name: str, number: int) -> None:
        args = {"count": number}
        events.append({"ph": "C", "pid": 0, "ts": at / 1e6, "name": name, "args": args})

    for pid, chip, part in chips:
        named.setdefault(pid, f"stage {pid - 1}: {timeline.stages[pid - 1]}")
        tracks.setdefault((pid, chip), f"chip {chip}")
        complete(pid, chip, part.label, part.kind, part.start, part.end)
    for number, (link, stage, uses) in enumerate(timeline.links):
        pid = 1 + stages + (stages if stage is None else stage)
        named.setdefault(pid, "links of switches" if stage is None else f"links from stage {stage}")
        tracks[pid, number] = link
        for use in uses:
            complete(pid, number, use.label, "message", use.start, use.end)
    computing = [(part.start, part.end) for part in timeline.chips if part.kind == "compute"]
    sending = [(use.start, use.end) for link in timeline.links for use in link.uses]
    for name, intervals in (("chips computing", computing), ("messages on links", sending)):
        for at, number in _counted((tick(start), tick(end)) for start, end in intervals):
            count(at, name, number)
    for number, left in enumerate(timeline.tokens):
        at, name = tick(left), f"token {number + 1} sampled"
        events.append({"ph": "i", "pid": 0, "tid": 0, "ts": at / 1e6, "s": "g", "name": name})
        count(at, "KV cache, tokens", timeline.prompt + number)
    events.sort(key=_event_time)
    return [*_track_names(named, tracks), *events]


def _track_names(
    named: Mapping[int, str], tracks: Mapping[tuple[int, int], str]
) -> Iterator[JsonObject]:
    """Yield the names and the order of processes, and the names of their tracks."""
    for pid, process in sorted(named.items()):
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": process}}
    for pid in sorted(named):
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    for (pid, tid), track in sorted(tracks.items()):
        yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": track}}


def _event_time(event: JsonObject) -> float:
    """Return the time of an event, microseconds."""
    time = event["ts"]
    assert isinstance(time, float)
    return time


def _counted(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return how many of the intervals are open, at each time where that changes."""
    changes: defaultdict[int, int] = defaultdict(int)
    for start, end in intervals:
        changes[start] += 1
        changes[end] -= 1
    count, counted = 0, []
    for at in sorted(changes):
        if changes[at]:
            count += changes[at]
            counted.append((at, count))
    return counted
