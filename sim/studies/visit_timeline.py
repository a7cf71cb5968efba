"""A timeline of every chip and link of an attention pool and an FFN pool.

chrome_json(trace_visits(sim.read("afd-fastafd"), "trays-4", tokens=1))
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sim.chipsim.machine import ChipMachine, TimelineSlice, collecting_factory
from sim.chipsim.network import Cable
from sim.chipsim.visits import AttentionFfnMachine, ChipPool, Links
from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.visit_program import VisitProgram, visit_program
from sim.cost.work import decodes_at
from sim.inputs.errors import UserError
from sim.scenario.layout import deploy_fitting
from sim.scenario.pools import member_system
from sim.scenario.replicas import chip_machines
from sim.scenario.scenario import Scenario
from sim.serving.service import serve
from sim.studies.timeline import LinkUses, Timeline, require_few_events
from sim.units import Seconds
from sim.workload.requests import RequestBatch


def trace_visits(scenario: Scenario, name: str, tokens: int, prefill: bool = False) -> Timeline:
    """Return the timeline of one request for each micro-batch, which come together.

    tokens: how many each gets after its first.  prefill: whether prompts are in the timeline.
    Raises: UserError if the system has drafts, the context is too short, or a trace would have too
    many events; PlanError if the system does not fit.
    """
    deployment = deploy_fitting(scenario, name)
    costs, prompt = deployment.pools, round(scenario.workload.mean_prompt)
    if deployment.layout.speculation:
        raise UserError(
            f"trace: systems.{name}: got speculate; expected a system without drafts;"
            f" try --set systems.{name}.attention.speculate.tokens=0"
        )
    assert costs
    count, longest = costs.micro_batches, prompt + tokens + 1
    program = visit_program(costs, decodes_at(count, longest, deployment.limits.window))
    require_few_events((tokens + prefill) * _visit_events(costs, program), tokens)
    made: list[ChipMachine] = []
    machine = collecting_factory(chip_machines(scenario, name, deployment, recording=True), made)
    requests = RequestBatch(np.zeros(count), np.full(count, prompt), np.full(count, tokens + 1))
    limits = deployment.limits
    # All prompts pass in one step, because the visits of decodes are what a timeline is for.
    limits = replace(
        limits,
        kv_tokens=count * (longest + limits.state_tokens),
        context=longest,
        sequences=count,
        token_budget=max(limits.token_budget, count * prompt),
    )
    rows = serve(requests, costs, limits, machine=machine)
    (used,) = made
    assert isinstance(used, AttentionFfnMachine)
    start = 0.0 if prefill else float(rows.first_token.max())
    attention, ffn = used.attention, used.ffn
    bounds = [f"FFN: layers {s.first} to {s.last}" for s in costs.ffn.layout.stages]
    firsts = [attention.size + stage * ffn.size for stage in range(ffn.stages)]
    slices = [*_slices(attention, 0, start), *_slices(ffn, attention.size, start)]
    layouts = (costs.layout, costs.ffn.layout)
    chips = " + ".join(
        f"{pool.chips} x {layout.chip.id}"
        for pool, layout in zip((attention, ffn), layouts, strict=True)
    )
    return Timeline(
        system=member_system(scenario.systems, name).full_label or name,
        identity=f"{costs.layout.model.id} on {chips}",
        stage_size=attention.size,
        stages=("attention", *bounds),
        chips=sorted(slices, key=lambda piece: piece.start),
        links=list(_link_uses(used, start)),
        tokens=[left for left in used.left if left >= start],
        prompt=prompt,
        start=start,
        end=float(rows.last_token.max()),
        first_chips=(0, *firsts),
    )


def _visit_events(costs: AttentionFfnCosts, program: VisitProgram) -> int:
    """Return about how many slices and messages of links one step adds to a timeline."""
    attention, ffn = costs.layout.plan.stage_size, costs.ffn.layout.plan.stage_size
    visits = sum(
        attention * (len(layer.attention) + 2) + ffn * (len(layer.ffn) + 2)
        for layer in program.layers
    )
    return program.micro_batches * visits


def _slices(pool: ChipPool, first: int, start: Seconds) -> Iterator[TimelineSlice]:
    """Yield the recorded slices after `start`. first: number of the pool's first chip."""
    for piece in pool.slices or ():
        if piece.start >= start:
            yield piece._replace(chip=first + piece.chip)


def _link_uses(machine: AttentionFfnMachine, start: Seconds) -> Iterator[LinkUses]:
    """Yield the uses of each link after `start`, with the stage at its end or beginning."""
    attention, ffn = machine.attention, machine.ffn

    def used(cable: Cable, stage: int | None, name: str) -> Iterator[LinkUses]:
        uses = [use for use in cable.uses or [] if use.start >= start]
        if uses:
            yield LinkUses(name, stage, uses)

    for pool, noun, first in ((attention, "attention", 0), (ffn, "FFN", 1)):
        for hop, cable in pool.transport.network.cables.items():
            stage = first + hop[0] // pool.size if isinstance(hop[0], int) else None
            yield from used(cable, stage, f"{noun}: {cable.name}")
    directions: tuple[tuple[Links, int, int], ...] = ((machine.out, 0, 1), (machine.back, 1, 0))
    for links, here, there in directions:
        for ends, first in ((links.out, here), (links.into, there)):
            for number, link in enumerate(ends):
                stage = first and first + number // ffn.size
                yield from used(link.cable, stage, link.cable.name)
        yield from used(links.whole.cable, None, links.whole.cable.name)
