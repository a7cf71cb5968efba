"""Chips and links by hand: messages, collectives, stragglers, jitter, dead links, schedules."""

from itertools import pairwise

import numpy as np
import pytest
import simpy

from sim.chipsim.collectives import Transport
from sim.chipsim.exceptions import (
    ChipException,
    ExceptionField,
    Irregularities,
    replica_irregularities,
)
from sim.chipsim.machine import Machine, machine_factory
from sim.chipsim.network import Cable, LinkException, Network, ScheduleError
from sim.cost.collectives import Exchange
from sim.cost.plan import Plan
from sim.cost.program import CollectiveOp, ComputeOp, program
from sim.cost.work import Work
from sim.hardware.topology import (
    Bus,
    Dragonfly,
    FullyConnected,
    Hierarchical,
    Line,
    Link,
    Message,
    Ring,
    Switch,
)

US = 1e-6
LINK = Link(latency=1 * US, bandwidth=1e9)  # 1,000 bytes take 1 us


@pytest.fixture
def lay(make_chip, make_deployment):
    """The small model on chips joined by a topology, software that loses nothing."""

    def build(topology=None, tensor=2, pipeline=1, **options):
        chip = make_chip(capacity=1e9, topology=topology or FullyConnected(link=LINK))
        return make_deployment(
            tensor * pipeline, chip=chip, plan=Plan(tensor=tensor, pipeline=pipeline), **options
        )

    return build


def one_step(machine: Machine, work: Work):
    """Take a step through all stages, as a process."""
    yield machine.start(work).back


def step(deployment, irregular=None, work=None, seed=0) -> tuple[float, Machine]:
    """How long one decode step takes, and the machine that took it."""
    env = simpy.Environment()
    machine = Machine(
        env,
        deployment.costs,
        irregular or Irregularities(),
        [seed],
        recording=True,
    )
    env.process(one_step(machine, work or Work(decodes=1, context=9, logits=1)))
    env.run()
    return machine.left[0], machine


def instructions(deployment, stage=0):
    return program(deployment.costs, Work(decodes=1, context=9, logits=1)).stages[stage]


# Cables.


def test_a_cable_serves_one_after_the_other():
    cable = Cable("0 -> 1")
    assert cable.take(0.0, 2.0, "a", "") == 0.0
    assert cable.take(1.0, 2.0, "b", "") == 2.0
    assert cable.waited == 1.0
    assert cable.take(3.0, 1.0, "b", "") == 4.0  # behind its own, which is its own order
    assert cable.waited == 1.0
    assert cable.take(9.0, 1.0, "c", "") == 9.0


def test_a_scheduled_cable_has_no_queue():
    cable = Cable("0 -> 1", scheduled=True)
    cable.take(0.0, 2e-6, "a", "gather")
    assert cable.take(1e-6, 2e-6, "a", "gather") == 2e-6
    with pytest.raises(
        ScheduleError,
        match=r"reduce clashes on the link 0 -> 1: it is due at 1\.000 us, "
        r"and the link is taken until 4",
    ):
        cable.take(1e-6, 2e-6, "b", "reduce")


def test_a_message_pays_each_latency_and_its_bytes_once_at_the_narrowest():
    """Three hops of a line, the middle one at half its bandwidth: 3 us + 2 us for 1,000 bytes."""
    network = Network(Line(link=LINK).sized(4), exceptions=[LinkException((1, 2), 0.5)])
    way = network.path(0, 3)
    assert [leg.hop for leg, _ in way] == [(0, 1), (1, 2), (2, 3)]
    assert [1000 / (leg.bandwidth * speed) for leg, speed in way] == pytest.approx(
        [1 * US, 2 * US, 1 * US]
    )
    assert [
        1000 * per_byte for *_, per_byte in network.segments(Message(0, 3, 1.0))
    ] == pytest.approx([1 * US, 2 * US, 2 * US])


def test_a_bus_carries_one_message_at_a_time(lay):
    """Four chips send 12 messages of 128 bytes in one shot, and all of them take the bus."""
    deployment = lay(
        Bus(link=Link(latency=100 * US, bandwidth=1e9)), tensor=4
    )  # one shot, for latency decides
    talk = next(
        each.exchange for each in instructions(deployment) if isinstance(each, CollectiveOp)
    )
    assert talk.algorithms == (("one-shot",),)
    assert talk.time == pytest.approx(100 * US + 12 * 128e-9)
    _, machine = step(deployment)
    assert list(machine.traffic.links) == ["bus"]
    messages, busy, waited = machine.traffic.links["bus"]
    talks = sum(isinstance(each, CollectiveOp) for each in instructions(deployment))
    assert messages == 12 * talks
    assert busy == pytest.approx(messages * 128e-9)
    assert waited == 0


# Chips that are not alike.


@pytest.mark.parametrize("speed", [0.5, 0.9, 2.0])
def test_a_straggler_holds_up_its_stage_and_no_other(lay, speed):
    """Every computing of its stage takes the longer of its own time and the others'."""
    deployment = lay(tensor=2, pipeline=2)
    whole, _ = step(deployment)
    slow, machine = step(deployment, Irregularities(chips=(ChipException(3, speed),)))
    computing = sum(
        each.seconds for each in instructions(deployment, 1) if isinstance(each, ComputeOp)
    )
    assert slow == pytest.approx(whole + computing * max(0.0, 1 / speed - 1))
    assert machine.busy[0] == pytest.approx(
        float(deployment.costs.step(Work(decodes=1, context=9, logits=1)).time[0])
    )


def test_a_chip_of_another_kind_computes_as_its_own_data_sheet_says(
    lay, make_chip, make_deployment
):
    """One chip with a quarter of the bandwidth slows a group of two as much as two such chips."""
    deployment = lay()
    slow = make_chip(capacity=1e9, bandwidth=0.25e9, topology=FullyConnected(link=LINK))
    other = make_deployment(2, chip=slow, plan=Plan(tensor=2))
    mixed, _ = step(deployment, Irregularities(chips=(ChipException(1, costs=other.costs),)))
    assert mixed == pytest.approx(step(other)[0])
    assert mixed > 2 * step(deployment)[0]


def test_jitter_makes_a_group_wait_for_the_slowest(lay):
    """The mean of n lognormal factors' maximum, drawn apart: 20 seeds, three standard errors."""
    sigma = 0.2
    for tensor in (1, 4):
        deployment = lay(tensor=tensor)
        draws = (
            np.random.default_rng(1).lognormal(-(sigma**2) / 2, sigma, (20000, tensor)).max(axis=1)
        )
        talk = sum(
            each.exchange.time
            for each in instructions(deployment)
            if isinstance(each, CollectiveOp)
        )
        parts = [each.seconds for each in instructions(deployment) if isinstance(each, ComputeOp)]
        times = [step(deployment, Irregularities(jitter=sigma), seed=seed)[0] for seed in range(20)]
        error = draws.std() * np.sqrt(np.square(parts).sum()) / np.sqrt(20)
        assert np.mean(times) == pytest.approx(talk + draws.mean() * sum(parts), abs=3 * error)


def test_the_same_seed_draws_the_same_jitter(lay, serve_on):
    deployment = lay(tensor=4, pipeline=2)
    requests = [(0.0, 40, 9), (0.001, 9, 5)]
    rows = [
        serve_on(
            deployment,
            requests,
            machine=machine_factory(deployment.costs, [Irregularities(jitter=0.1)], [s]),
        )
        for s in (1, 1, 2)
    ]
    assert (rows[0].last_token == rows[1].last_token).all()
    assert (rows[0].last_token != rows[2].last_token).all()


def test_a_straggler_meets_the_same_jitter_and_leaves_the_others_theirs(lay):
    """A chip's k-th factor does not depend on when the other chips ask for theirs."""
    deployment = lay(tensor=2, pipeline=2)
    slow = Irregularities(jitter=0.3, chips=(ChipException(1, 0.5),))
    times = []
    for irregular in (Irregularities(jitter=0.3), slow):
        _, machine = step(deployment, irregular)
        computed = [each for each in machine.slices if each.kind == "compute"]
        times.append([[s.end - s.start for s in computed if s.chip == chip] for chip in range(4)])
    alike, slowed = times
    assert slowed[1] == pytest.approx([2 * seconds for seconds in alike[1]])
    for chip in (0, 2, 3):
        assert slowed[chip] == pytest.approx(alike[chip])
    assert alike[0] != pytest.approx(alike[1])


@pytest.mark.parametrize(("sigma", "steps"), [(0.1, 2500), (0.5, 200)])
def test_the_mean_of_jitter_is_one(lay, sigma, steps):
    """Computing takes as long as without jitter, over many steps of one chip.

    The factor has variance exp(sigma^2) - 1; the bound is five standard errors of the sum.
    """
    deployment, env = lay(tensor=1), simpy.Environment()
    work = Work(decodes=1, context=9, logits=1)
    parts = [each.seconds for each in instructions(deployment) if isinstance(each, ComputeOp)]
    machine = Machine(env, deployment.costs, Irregularities(jitter=sigma), [3])
    for _ in range(steps):
        env.process(one_step(machine, work))
    env.run()
    error = np.sqrt(np.expm1(sigma**2) * np.square(parts).sum() * steps)
    assert machine.busy[0] == pytest.approx(steps * sum(parts), abs=5 * error)
    assert 5 * error < steps * sum(parts) * sigma**2 / 2  # a median of 1 would be seen


# Links that are not alike.


def test_messages_go_round_a_dead_link(lay):
    """In a full mesh the detour by a third chip is one more hop for its two neighbours.

    Therefore every collective has one more latency.

    The two messages on the cables 0 -> 2 and 2 -> 1 wait for those that 0 and 2 send themselves.
    """
    deployment = lay(tensor=3)
    whole, _ = step(deployment)
    around, machine = step(deployment, Irregularities(links=(LinkException((0, 1), 0.0),)))
    assert {"0 -> 1", "1 -> 0"}.isdisjoint(machine.traffic.links)
    talks = [each.exchange for each in instructions(deployment) if isinstance(each, CollectiveOp)]
    hold = sum(t.nbytes / 1e9 * (1 if t.algorithms[0] == ("one-shot",) else 2 / 3) for t in talks)
    phases = sum(1 if t.algorithms[0] == ("one-shot",) else 2 for t in talks)
    assert whole + phases * US <= around <= whole + phases * US + 2 * hold + 1e-12


@pytest.mark.parametrize("chips", [3, 4, 5, 6])
def test_a_ring_goes_the_other_way_round(chips):
    network = Network(Ring(link=LINK).sized(chips), exceptions=[LinkException((0, 1), 0.0)])
    assert [leg.hop[0] for leg, _ in network.path(0, 1)] == [0, *range(chips - 1, 1, -1)]


def test_a_slow_cable_between_nodes_slows_what_crosses_it(lay):
    """Two nodes of four: an all-reduce over both is the slower, the slower one of its cables is."""
    numbers = {
        "node": 4,
        "rack": 3,
        "direct": 20,
        "limit": 48,
        "direct_bandwidth": 1e9,
        "global_bandwidth": 1e9,
    }
    deployment = lay(Dragonfly(link=LINK, global_link=LINK, **numbers), tensor=8)
    hop = next(hop for hop in deployment.layout.topology.route(0, 4) if hop[0] // 4 != hop[1] // 4)
    times = [
        step(deployment, Irregularities(links=(LinkException(hop, speed),)))[0]
        for speed in (1.0, 0.5, 0.1)
    ]
    assert times[0] < times[1] < times[2]
    assert times[0] == pytest.approx(step(deployment)[0])


def test_a_bus_in_a_node_is_one_bus(lay):
    """Nested in a hierarchy it serves one message at a time as ever, at one latency."""
    nodes = Hierarchical(levels=(Bus(link=LINK, chips=2), Switch(link=LINK))).sized(4)
    assert (
        [leg.hop for leg in nodes.segments(0, 1)]
        == [("0.0.bus", "0.0.bus")]
        == [leg.hop for leg in nodes.segments(1, 0)]
    )
    assert nodes.send(0, 1, 1000) == pytest.approx(2 * US)
    assert nodes.segments(2, 3)[0].hop == ("0.2.bus", "0.2.bus")


def test_a_slow_message_holds_up_the_next_phase_of_its_two_chips():
    """A two-shot all-reduce of three chips, 1,000 bytes a message, one link at half its speed.

    Both phases take the slow link: a chip waits for the latest message, whichever is sent last.
    """
    env, topology = simpy.Environment(), FullyConnected(link=LINK).sized(3)
    transport = Transport(env, Network(topology, exceptions=[LinkException((0, 1), 0.5)]))
    two_shot = Exchange("all_reduce", (range(3),), 3000.0, (("two-shot",),), 0.0, 1.0, 0.0, 0.0)
    bound = transport.bind("", two_shot)
    ends = [transport.join(chip, bound, 0) for chip in range(3)]
    env.run(ends[0])
    assert env.now == pytest.approx(2 * (1 * US + 2 * US))
    assert ends[0] is ends[2]


def test_there_is_no_way_round_a_switch(lay):
    with pytest.raises(
        Exception,
        match=r"got 0 -> switch dead; expected a path from chip 0 to chip 1, "
        r"and no other chip leads around it",
    ):
        step(lay(Switch(link=LINK)), Irregularities(links=(LinkException((0, "switch"), 0.0),)))


def test_a_slow_link_slows_what_crosses_it(lay):
    deployment = lay()
    talk = sum(
        each.exchange.nbytes for each in instructions(deployment) if isinstance(each, CollectiveOp)
    )
    whole, _ = step(deployment)
    slow, _ = step(deployment, Irregularities(links=(LinkException((0, 1), 0.25),)))
    assert slow == pytest.approx(whole + 3 * talk / 1e9)  # one-shot of two: each sends all of it


# Schedules.


def test_a_schedule_that_can_be_kept_takes_the_same_time(lay):
    deployment = lay(tensor=4, pipeline=2)
    assert step(deployment, Irregularities(scheduled=True))[0] == pytest.approx(
        step(deployment)[0], rel=1e-12
    )


def test_a_schedule_knows_no_stragglers(lay):
    with pytest.raises(
        ScheduleError, match=r"schedule: chip 1 is .* us late for embedding: all_reduce, due at"
    ):
        step(lay(), Irregularities(chips=(ChipException(1, 0.5),), scheduled=True))


def test_a_fast_chip_waits_for_its_time(lay):
    deployment = lay()
    assert step(deployment, Irregularities(chips=(ChipException(1, 3.0),), scheduled=True))[
        0
    ] == pytest.approx(step(deployment)[0])


def test_two_groups_on_one_bus_clash_in_a_schedule(lay, serve_on):
    deployment = lay(Bus(link=LINK), pipeline=2)
    requests = [(0.0, 64, 4), (0.0, 64, 4)]
    with pytest.raises(ScheduleError, match="clashes on the link bus"):
        serve_on(
            deployment,
            requests,
            machine=machine_factory(deployment.costs, [Irregularities(scheduled=True)], [0]),
        )
    rows = serve_on(
        deployment, requests, machine=machine_factory(deployment.costs, [Irregularities()], [0])
    )
    assert rows.traffic[0].most_waited()[0][0] == "bus"


# What is recorded.


def test_chips_and_links_do_one_thing_at_a_time(lay, serve_on):
    deployment = lay(Switch(link=LINK), tensor=4, pipeline=2)
    made = []

    def machine(env, replica):
        made.append(Machine(env, deployment.costs, Irregularities(), recording=True))
        return made[-1]

    serve_on(deployment, [(0.0, 40, 9), (0.001, 30, 9)], machine=machine)
    tracks = {chip: [each for each in made[0].slices if each.chip == chip] for chip in range(8)}
    tracks |= {cable.name: cable.uses for cable in made[0].network.cables.values()}
    assert len(tracks) == 8 + 16
    for uses in tracks.values():
        assert len(uses) > 20
        assert all(a.end <= b.start + 1e-15 for a, b in pairwise(uses))


@pytest.mark.parametrize(
    ("topology", "dead"),
    [(Switch(link=LINK), ()), (FullyConnected(link=LINK), ((0, 1), (0, 2), (2, 3)))],
)
def test_what_is_recorded_is_what_happens(lay, topology, dead):
    """A recorded step takes as long as another one, and its messages are all the traffic.

    Chip 0 reaches chip 1 by chip 3, and chip 2 by chip 4. So its messages take two first cables.
    """
    deployment, env = lay(topology, tensor=5), simpy.Environment()
    irregular = Irregularities(links=tuple(LinkException(hop, 0.0) for hop in dead))
    recorded, machine = step(deployment, irregular)
    plain = Machine(env, deployment.costs, irregular, [0])
    env.process(one_step(plain, Work(decodes=1, context=9, logits=1)))
    env.run()
    assert plain.left[0] == pytest.approx(recorded, rel=1e-12)
    for cable in machine.network.cables.values():
        busy = sum(use.end - use.start for use in cable.uses)
        assert machine.traffic.links[cable.name][1] == pytest.approx(busy)
    assert plain.traffic.messages == machine.traffic.messages


def test_traffic_is_what_the_program_says(lay, serve_on):
    """Messages and seconds on links, counted by hand from the program of each passage."""
    deployment = lay(tensor=4, pipeline=2)
    rows = serve_on(
        deployment,
        [(0.0, 1, 6)],
        machine=machine_factory(deployment.costs, [Irregularities()], [0]),
    )
    talks = [
        each.exchange
        for stage in (0, 1)
        for each in instructions(deployment, stage)
        if isinstance(each, CollectiveOp)
    ]
    topology = deployment.layout.topology
    messages = sum(
        len(p) for t in talks for p in topology.messages(t.operation, t.groups[0], t.algorithms[0])
    )
    assert rows.traffic[0].messages == 6 * (
        messages + 4 + 1
    )  # and a slice for each chip, and the token's way back
    nbytes = sum(
        m.share * t.nbytes
        for t in talks
        for p in topology.messages(t.operation, t.groups[0], t.algorithms[0])
        for m in p
    )
    busy = sum(seconds for _, seconds, _ in rows.traffic[0].links.values())
    assert busy == pytest.approx(
        6 * (nbytes + 64 * 2 + 4) / 1e9
    )  # hidden states of 64 numbers in four slices


# What a system's file may say of chips of another kind.


def test_two_chips_of_other_kinds_are_two_kinds(lay, make_chip):
    """Written in place they have the same name; each is as slow as it says, whatever the order."""
    deployment = lay(tensor=4)
    slow, slower = (
        make_chip(capacity=1e9, bandwidth=b, topology=FullyConnected(link=LINK))
        for b in (0.5e9, 0.1e9)
    )
    times = []
    for first, second in ((slow, slower), (slower, slow)):
        exceptions = [ExceptionField(chip=0, like=first), ExceptionField(chip=1, like=second)]
        times.append(
            step(
                deployment,
                replica_irregularities(deployment.layout, exceptions, 0, Irregularities(), 64, 100),
            )[0]
        )
    assert times[0] == pytest.approx(times[1])
    assert times[0] > 5 * step(deployment)[0]


def test_a_chip_with_less_room_than_the_system_counts_on_is_refused(lay, make_chip):
    deployment = lay()
    small = make_chip(capacity=0.3e6, topology=FullyConnected(link=LINK))
    with pytest.raises(
        ValueError,
        match=r"room for \d+ tokens of KV cache; expected room for the \d+ of the system; "
        r"try kv_tokens",
    ):
        replica_irregularities(
            deployment.layout,
            [ExceptionField(chip=1, like=small)],
            0,
            Irregularities(),
            64,
            deployment.limits.kv_tokens,
        )
