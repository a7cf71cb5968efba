"""What every chip and every link does while a lone request gets some tokens: a timeline, and its form for Perfetto."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from sim.chipsim.machine import Machine, TimelineSlice, collecting_factory
from sim.chipsim.network import CableUse
from sim.cost.program import CollectiveOp, Program, labels, program
from sim.cost.step import Work
from sim.hardware.topology import Hop
from sim.inputs.files import UserError
from sim.planning.deployment import Deployment
from sim.scenario.layout import deploy_fitting
from sim.scenario.replicas import chip_machines
from sim.scenario.scenario import Scenario
from sim.serving.service import serve
from sim.units import Seconds
from sim.workload.arrivals import RequestBatch

MOST_EVENTS = 1_000_000  # that Perfetto shows with ease


class LinkUses(NamedTuple):
    """What a link carried, and the stage of the chip that it comes from (None for a switch or a bus)."""

    name: str
    stage: int | None
    uses: list[CableUse]


@dataclass(frozen=True, eq=False)
class Timeline:
    """Slices of time by chip and by link, from `start` to `end`, all in seconds of the simulated clock."""

    system: str
    identity: str  # model, chips, engine
    group: int  # chips of a stage
    stages: tuple[str, ...]
    chips: list[TimelineSlice]
    links: list[LinkUses]
    tokens: list[Seconds]  # when each left the last stage
    prompt: int
    start: Seconds
    end: Seconds


def step_program(scenario: Scenario, name: str) -> tuple[Deployment, Program]:
    """A system, and its program of one decode step in the middle of a mean request."""
    deployment = deployed(scenario, name)
    context = round(scenario.workload.mean_prompt + scenario.workload.mean_output / 2)
    window = deployment.layout.model.window or context
    return deployment, program(
        deployment.costs, Work(1, context, logits=1, windowed_context=min(context, window))
    )


def deployed(scenario: Scenario, name: str) -> Deployment:
    """Raises: UserError where there is no such system, PlanError where it does not fit."""
    if name not in scenario.systems:
        raise UserError(
            f"system {name}: {scenario.id} has none of this name; it has {', '.join(scenario.systems)}"
        )
    if name not in (members := scenario.members(name)):
        raise UserError(
            f"system {name}: is a fleet; follow one of its members: --system {', --system '.join(members)}"
        )
    return deploy_fitting(scenario, name)


def trace(scenario: Scenario, name: str, tokens: int, prefill: bool = False) -> Timeline:
    """A lone request of the scenario's mean prompt at chip fidelity, while it gets `tokens` more tokens after its first.

    Raises: UserError where more would happen than a trace can show.
    """
    deployment = deployed(scenario, name)
    prompt, layout = round(scenario.workload.mean_prompt), deployment.layout
    if prompt + tokens + 1 > deployment.limits.context:
        raise UserError(
            f"trace: {prompt + tokens + 1} tokens exceed the model's context of {deployment.limits.context}"
        )
    passages = tokens + (-(-prompt // deployment.limits.token_budget) if prefill else 0)
    expected = passages * events_of_a_step(deployment, step_program(scenario, name)[1])
    if expected > MOST_EVENTS:
        raise UserError(
            f"trace: about {expected:,} events in {passages} passages, and {MOST_EVENTS:,} can be shown; ask for fewer tokens"
        )
    made: list[Machine] = []
    machine = collecting_factory(chip_machines(scenario, name, deployment, recording=True), made)
    alone = RequestBatch(np.zeros(1), np.array([prompt]), np.array([tokens + 1]))
    limits = replace(deployment.limits, kv_tokens=prompt + tokens + 1, context=prompt + tokens + 1)
    if not prefill:  # what is not shown passes in one piece: token by token it would take minutes
        limits = replace(limits, token_budget=max(limits.token_budget, prompt))
    rows = serve(alone, deployment.costs, limits, machine=machine)
    start = 0.0 if prefill else float(rows.first_token[0])
    names = labels(layout.model)
    return Timeline(
        system=name,
        identity=f"{layout.model.id} on {deployment.chips} x {layout.chip.id}, {layout.engine.id}",
        group=layout.plan.stage_size,
        stages=tuple(dict.fromkeys(f"{names[s.first]} to {names[s.last]}" for s in layout.stages)),
        chips=[each for each in made[0].slices if each.start >= start],
        links=list(_links(made[0], layout.plan.stage_size, start)),
        tokens=[left for left in made[0].left if left >= rows.first_token[0]],
        prompt=prompt,
        start=start,
        end=float(rows.last_token[0]),
    )


def _links(machine: Machine, group: int, start: Seconds) -> Iterator[LinkUses]:
    def origin(hop: Hop) -> int:
        return hop[0] if isinstance(hop[0], int) else -1

    for hop, cable in sorted(
        machine.network.cables.items(), key=lambda item: (origin(item[0]), item[1].name)
    ):
        uses = [use for use in cable.uses or [] if use.start >= start]
        if uses:
            yield LinkUses(cable.name, origin(hop) // group if origin(hop) >= 0 else None, uses)


def events_of_a_step(deployment: Deployment, steps: Program) -> int:
    """About how many slices one step leaves in a timeline."""
    topology, group = deployment.layout.topology, deployment.layout.plan.stage_size
    known: dict[tuple[object, ...], int] = {}
    count = 0
    for instructions in steps.stages:
        count += group * (len(instructions) + 1)
        for talk in (each for each in instructions if isinstance(each, CollectiveOp)):
            operation, groups, _, (way, *_), *_ = talk.exchange
            key = (operation, way, len(groups[0]))
            if key not in known:
                known[key] = sum(map(len, topology.messages(operation, groups[0], way)))
            count += known[key] * len(groups)
    return count


def chrome_json(timeline: Timeline) -> str:
    """The timeline as Chrome's trace events (JSON object format), which ui.perfetto.dev opens.

    A process for each stage, with a track for each chip, and one for the links that come from it, with a track for each link.
    Source: Google, 'Trace Event Format'.
    """
    lines = (json.dumps(event, separators=(",", ":")) for event in chrome_events(timeline))
    return '{"displayTimeUnit":"ns","traceEvents":[\n' + ",\n".join(lines) + "\n]}\n"


def chrome_events(timeline: Timeline) -> list[dict[str, Any]]:
    """Names first, then all events by their time: slices (X), counters (C), instants (i)."""
    stages = len(timeline.stages)
    chips = [(1 + each.chip // timeline.group, each.chip, each) for each in timeline.chips]
    named: dict[int, str] = {0: timeline.system}
    tracks: dict[tuple[int, int], str] = {}
    events: list[dict[str, Any]] = []

    def tick(time: Seconds) -> int:
        """Picoseconds since the beginning: whole numbers, so that neighbours on a track do not overlap by a rounding."""
        return round((time - timeline.start) * 1e12)

    def complete(pid: int, tid: int, name: str, kind: str, start: Seconds, end: Seconds) -> None:
        begun = tick(start)
        dur = (tick(end) - begun) / 1e6
        events.append(
            {
                "ph": "X",
                "pid": pid,
                "tid": tid,
                "ts": begun / 1e6,
                "dur": dur,
                "name": name,
                "cat": kind,
            }
        )

    for pid, chip, each in chips:
        named.setdefault(pid, f"stage {pid - 1}: {timeline.stages[pid - 1]}")
        tracks.setdefault((pid, chip), f"chip {chip}")
        complete(pid, chip, each.label, each.kind, each.start, each.end)
    for number, (link, stage, uses) in enumerate(timeline.links):
        pid = 1 + stages + (stages if stage is None else stage)
        named.setdefault(pid, "links of switches" if stage is None else f"links from stage {stage}")
        tracks[pid, number] = link
        for use in uses:
            complete(pid, number, use.label, "message", use.start, use.end)
    for label, intervals in (
        (
            "chips computing",
            [(each.start, each.end) for each in timeline.chips if each.kind == "compute"],
        ),
        (
            "messages on links",
            [(use.start, use.end) for link in timeline.links for use in link.uses],
        ),
    ):
        for at, count in _counted((tick(start), tick(end)) for start, end in intervals):
            events.append(
                {"ph": "C", "pid": 0, "ts": at / 1e6, "name": label, "args": {"count": count}}
            )
    for number, left in enumerate(timeline.tokens):
        ts = tick(left) / 1e6
        events.append(
            {
                "ph": "i",
                "pid": 0,
                "tid": 0,
                "ts": ts,
                "s": "g",
                "name": f"token {number + 1} sampled",
            }
        )
        events.append(
            {
                "ph": "C",
                "pid": 0,
                "ts": ts,
                "name": "KV cache, tokens",
                "args": {"count": timeline.prompt + number},
            }
        )
    events.sort(key=lambda event: event["ts"])
    names = [
        *(
            {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
            for pid, name in sorted(named.items())
        ),
        *(
            {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
            for pid in sorted(named)
        ),
        *(
            {"ph": "M", "pid": p, "tid": t, "name": "thread_name", "args": {"name": n}}
            for (p, t), n in sorted(tracks.items())
        ),
    ]
    return [*names, *events]


def _counted(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """How many of the intervals are open, wherever that changes."""
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
