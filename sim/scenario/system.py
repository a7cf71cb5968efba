"""A system of a scenario: chips, engine, plan and scheduling; or a fleet of systems."""

import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from sim.chipsim.exceptions import ExceptionField
from sim.hardware.engine import NetworkMode, Sigma
from sim.inputs.values import Change, Entry, Value
from sim.model.transformer import ModelField
from sim.planning.deployment import LimitOverrides
from sim.reliability.failures import Faults
from sim.reliability.link_errors import LinkErrors
from sim.scenario.placement import Placement
from sim.scenario.speculate import DraftSystem, Speculate
from sim.serving.batch_wait import BatchWait
from sim.serving.policy import BATCHINGS, BatchingField, OrderField, Policies, RouterField
from sim.serving.replica_config import Outage
from sim.units import Count, Seconds

# Names of the colours of Okabe and Ito's palette, which colour-blind readers tell apart.
# Source: https://jfly.uni-koeln.de/color/
COLOUR_CODES = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "pink": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
MOST_LABEL = 40  # characters; a longer label does not fit a key or a column


def _colour_code(colour: str) -> str:
    """Return '#0072B2' for 'blue', and a code as it is.

    Raises: ValueError if it is neither a name in COLOUR_CODES nor a code.
    """
    if re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        return colour
    if colour not in COLOUR_CODES:
        raise ValueError(
            f"got {colour!r}; expected one of {', '.join(COLOUR_CODES)}, or a code; try '#0072B2'"
        )
    return COLOUR_CODES[colour]


def _single_line(label: str) -> str:
    """Return a label as it is.

    Raises: ValueError if it is empty, too long or has control characters.
    """
    if not (label.strip() and label.isprintable() and len(label) <= MOST_LABEL):
        raise ValueError(
            f"got {label!r}; expected one line of 1 to {MOST_LABEL} characters; try '576 Groq LPUs'"
        )
    return label


class Shown(Value):
    """The label and the colour of a system in tables and figures."""

    label: Annotated[str, AfterValidator(_single_line)] | None = Field(
        default=None,
        description="Name in tables and figures; `{chips}` becomes their number; default: the key.",
    )
    colour: Annotated[str, AfterValidator(_colour_code)] | None = Field(
        default=None,
        description=f"Colour in figures: {', '.join(COLOUR_CODES)}, or a code; default: by maker.",
    )

    @property
    def full_label(self) -> str | None:
        """The label as it is shown; None without one."""
        return self.label


class System(Placement, Shown):
    """Chips, their engine, the plan of the model on them, and the options of the scheduler.

    With `admission: prompt` the youngest sequence is preempted when the KV cache is full.

    `policy: ring` is for a compiled pipeline: a sequence decodes on a beat of its own, once a lap.
    A lap is an unloaded pass, rounded up to whole beats. Prompts take the free beats in order.
    So an arrival waits for the next beat, and TPOT is a whole number of beats.
    Unloaded times leave this rounding out.
    All beats are those of a mean request's last token; `check` warns of longer ones.
    At most as many sequences run as the ring has beats.

    Requests are served while the system works, except for `outages` and `link_errors`.
    """

    model: ModelField | None = Field(
        default=None, description="Model of this system; default: that of the scenario."
    )
    max_sequences: Count | None = Field(
        default=None,
        description="Most sequences in all micro-batches of a replica, or of each rank "
        "(`limits_per`); default: the engine's.",
    )
    request_overhead: Seconds = Field(
        default=0.0,
        description="Time that client, HTTP and tokenizer take before the scheduler sees a "
        "request [s].",
    )
    speculate: Speculate | None = Field(
        default=None, description="Drafts that each step verifies; default: one token a step."
    )
    routing: Literal["expected", "sampled"] = Field(
        default="expected",
        description="Loads of experts: expected, or sampled in each step; those of drafters are "
        "expected.",
    )
    policy: BatchingField | None = Field(
        default=None,
        description="Rule for the next work of a micro-batch, or `ring` for a compiled pipeline; "
        "default: the engine's.",
    )
    batch_wait: BatchWait | None = Field(
        default=None,
        description="Let prompts wait until several are computed in one step; default: no wait.",
    )
    receive_every: Count | None = Field(
        default=None,
        description="Decode steps after which the scheduler sees new requests, as SGLang's "
        "scheduler_recv_interval; also after prompts; default: 1.",
    )
    rank_wait: Count | None = Field(
        default=None,
        description="Most decode steps for which prompts wait until each attention rank has a "
        "prompt; default: no wait.",
    )
    async_scheduling: bool = Field(
        default=False,
        description="Choose each step while the one before it runs, as vLLM's async-scheduling and "
        "TensorRT-LLM's overlap scheduler.",
    )
    micro_batch: Count | None = Field(
        default=None,
        description="Most sequences of one micro-batch; default: its share of `max_sequences`.",
    )
    order: OrderField = Field(
        default="first-come-first-served",
        validate_default=True,
        description="Rule for the next request that is admitted.",
    )
    admission: Literal["reserve", "prompt"] | None = Field(
        default=None,
        description="KV cache reserved on admission: for the whole output, or the prompt with "
        "preemption; default: the engine's.",
    )
    prefix_caching: bool = Field(
        default=False,
        description="Whether full KV blocks of prompts and answers are kept for later requests "
        "with the same prefix.",
    )
    max_waiting: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Waiting requests of a replica above which new ones are refused; default: no "
        "limit.",
    )
    deadline: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="Time after its arrival at which an unfinished request is cancelled [s]; "
        "default: never.",
    )
    router: RouterField = Field(
        default="least-loaded",
        validate_default=True,
        description="Rule for the replica of a request.",
    )
    fidelity: Literal["stage", "chip"] | None = Field(
        default=None,
        description="`stage`: chips of a stage in lock step; `chip`: every chip is a process; "
        "default: the scenario's.",
    )
    network: NetworkMode | None = Field(
        default=None,
        description="At chip fidelity, transfers that wait for each other or are scheduled in "
        "advance; default: the engine's.",
    )
    jitter: Sigma | None = Field(
        default=None,
        description="Sigma of the lognormal factor of computing times, at chip fidelity; default: "
        "the engine's.",
    )
    exceptions: tuple[ExceptionField, ...] = Field(
        default=(), description="Chips and links that differ from the others, at chip fidelity."
    )
    faults: Faults | None = Field(
        default=None,
        description="Parts that fail over months; the availability is then simulated as well.",
    )
    outages: tuple[Outage, ...] = Field(
        default=(), description="Times in the run at which replicas are down."
    )
    link_errors: LinkErrors | None = Field(
        default=None,
        description="Bit errors of links, after which steps are repeated; default: none.",
    )

    @property
    def limits(self) -> LimitOverrides:
        return replace(
            super().limits, max_sequences=self.max_sequences, micro_batch=self.micro_batch
        )

    @property
    def full_label(self) -> str | None:
        """The label with the number of chips, the drafter's among them, in place of '{chips}'."""
        return self.label and self.label.replace("{chips}", f"{self.all_chips:,}")

    @property
    def all_chips(self) -> int:
        """The number of its chips, with those of a drafter that is in place."""
        return self.hardware[1] + (self.drafter.hardware[1] if self.drafter else 0)

    @property
    def changed(self) -> dict[str, Change]:
        """The changes of the entries that its parts are like, by dotted key.

        A key is 'chip.memory.sram.capacity'.
        """
        parts: dict[str, Entry | None] = {"model": self.model, **self.entries}
        if of := self.speculate:
            parts["speculate.draft.model"] = of.draft.model
            own = self.drafter.entries if self.drafter else {}
            parts |= {f"speculate.draft.system.{key}": part for key, part in own.items()}
        parts |= {
            f"exceptions.{number}.like": exception.like
            for number, exception in enumerate(self.exceptions)
        }
        return {
            f"{name}.{key}": change
            for name, part in parts.items()
            if part
            for key, change in part.changed.items()
        }

    @property
    def drafter(self) -> DraftSystem | None:
        """The chips that draft, if they are others and in place; None without drafts."""
        of = self.speculate
        chips = of.draft.system if of and of.tokens else None
        return chips if isinstance(chips, DraftSystem) else None

    @property
    def drafts_apart(self) -> bool:
        """Whether its drafter is on other chips, in place or named."""
        return self.speculate is not None and self.speculate.draft.system is not None

    @property
    def fails(self) -> bool:
        """Whether the system or its drafter has outages while it serves."""
        return bool(self.outages or (self.drafter and self.drafter.outages))

    @property
    def policies(self) -> Policies:
        """The policies of its scheduler."""
        return Policies(
            batching=self.policy or BATCHINGS[self.engine.policy],
            order=self.order,
            router=self.router,
            reserve=(self.admission or self.engine.admission) == "reserve",
            prefix_caching=self.prefix_caching,
            max_waiting=self.max_waiting,
            deadline=self.deadline,
            size=self.micro_batch,
            wait=self.batch_wait,
            receive_every=self.receive_every or 1,
            rank_wait=self.rank_wait,
            ahead=self.async_scheduling,
        )


class Fleet(Shown):
    """Replicas of different systems behind one router.

    Each copy has all options of its system except `router`.  The router of the fleet distributes
    requests over the replicas of all copies, in the order of the systems' names in `fleet`.
    All members serve the same model.
    """

    fleet: dict[str, Count] = Field(
        description="Other systems of the scenario, and the number of copies of each."
    )
    router: RouterField = Field(
        default="least-loaded",
        validate_default=True,
        description="Rule for the replica of a request, over the replicas of all copies.",
    )

    @field_validator("label")
    @classmethod
    def _without_chips(cls, label: str | None) -> str | None:
        if label and "{chips}" in label:
            raise ValueError(
                f"got {label!r}; expected a label without {{chips}}, because a fleet has members; "
                "try 'LPUs and H100'"
            )
        return label

    @field_validator("fleet")
    @classmethod
    def _some(cls, fleet: dict[str, int]) -> dict[str, int]:
        if not fleet:
            raise ValueError("got no systems; expected one or more; try {lpu: 2}")
        return fleet
