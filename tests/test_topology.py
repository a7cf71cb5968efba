"""Routes keep to the cables there are; closed forms of collectives agree with sums made by hand."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.topology import Dragonfly, FullyConnected, Link, Ring, Switch

US = 1e-6
LINK = Link(latency=1 * US, bandwidth=1e9)  # 1,000 bytes take 1 us
GLOBAL = Link(latency=2 * US, bandwidth=0.5e9)  # 1,000 bytes take 2 us


def dragonfly(chips: int, **changes) -> Dragonfly:
    """Small and round: nodes of 4, racks of 3 nodes, direct up to 20 chips."""
    numbers = {"node": 4, "rack": 3, "direct": 20, "limit": 48, "direct_bandwidth": 1e9, "global_bandwidth": 1e9}
    return Dragonfly(link=LINK, global_link=GLOBAL, **(numbers | changes)).sized(chips)


def groq(chips: int) -> Dragonfly:
    """The shape that Groq published: nodes of 8, racks of 9 nodes, direct up to 264 chips, 10,440 chips at most."""
    return dragonfly(chips, node=8, rack=9, direct=264, limit=10440)


def us(seconds: float) -> float:
    return pytest.approx(seconds / US)


# Any topology, any two chips of it.  A dragonfly beyond its direct size is wired by whole racks.
sizes = st.integers(2, 40)
topologies = st.one_of(
    st.builds(lambda n: FullyConnected(link=LINK).sized(n), sizes),
    st.builds(lambda n: Switch(link=LINK).sized(n), sizes),
    st.builds(lambda n: Ring(link=LINK).sized(n), sizes),
    st.builds(lambda nodes: groq(8 * nodes), st.integers(1, 33)),
    st.builds(lambda racks: groq(72 * racks), st.integers(4, 145)),
)


@st.composite
def journeys(draw):
    topology = draw(topologies)
    chips = st.integers(0, topology.chips - 1)
    return topology, draw(chips), draw(chips)


@st.composite
def groups(draw, smallest=1):
    """A topology, and the chips of one of its stages."""
    topology = draw(topologies)
    first = draw(st.integers(0, topology.chips - smallest))
    return topology, range(first, draw(st.integers(first + smallest, min(topology.chips, first + 40))))


@given(journeys())
@settings(deadline=None)
def test_a_route_leads_from_a_to_b_over_cables_each_used_once(journey):
    topology, a, b = journey
    route = topology.route(a, b)
    if a == b:
        assert route == ()
        return
    assert (route[0][0], route[-1][1]) == (a, b)
    assert all(before[1] == after[0] for before, after in pairwise(route))
    places = [a, *(hop[1] for hop in route)]
    assert len(set(places)) == len(places)
    assert all(place == "switch" or 0 <= place < topology.chips for place in places)


@given(journeys())
@settings(deadline=None)
def test_the_way_back_is_as_long_and_as_slow(journey):
    topology, a, b = journey
    assert topology.hops(a, b) == topology.hops(b, a)
    assert topology.send(a, b, 1000) == pytest.approx(topology.send(b, a, 1000))


@given(st.integers(2, 40), st.data())
def test_a_ring_goes_from_neighbour_to_neighbour_the_shorter_way_round(n, data):
    a, b = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    route = Ring(link=LINK).sized(n).route(a, b)
    assert all((j - i) % n in (1, n - 1) for i, j in route)
    assert len(route) == min((a - b) % n, (b - a) % n)


# Groq's fabric.  Published (Abts et al., ISCA 2022): 3 hops up to 264 chips, 5 up to 10,440; 4 cables to other nodes on a chip.


@given(st.one_of(st.integers(1, 33).map(lambda n: 8 * n), st.integers(4, 145).map(lambda n: 72 * n)), st.data())
@settings(deadline=None)
def test_a_dragonfly_keeps_within_the_published_hops(chips, data):
    a, b = data.draw(st.integers(0, chips - 1)), data.draw(st.integers(0, chips - 1))
    hops = groq(chips).hops(a, b)
    assert hops <= (1 if a // 8 == b // 8 else 3 if chips <= 264 or a // 72 == b // 72 else 5)


@pytest.mark.parametrize(("chips", "most"), [(8, 1), (264, 3), (576, 5), (10440, 5)])
def test_a_dragonfly_needs_the_published_hops(chips, most):
    fabric, first, last = groq(chips), range(chips)[:72], range(chips)[-72:]
    assert max(fabric.hops(a, b) for a in first for b in last) == most


@given(journeys())
@settings(deadline=None)
def test_a_dragonfly_changes_cable_where_it_leaves_a_node(journey):
    topology, a, b = journey
    if isinstance(topology, Dragonfly):
        for hop in topology.route(a, b):
            assert topology.link_of(hop) == (LINK if hop[0] // 8 == hop[1] // 8 else GLOBAL)


def cables(fabric: Dragonfly, nodes: int) -> set[tuple[int, int]]:
    """The cables between nodes that messages among the first `nodes` nodes use, from chip to chip."""
    node = fabric.node
    routes = [fabric.route(node * a, node * b) for a in range(nodes) for b in range(nodes)]
    return {(a, b) for route in routes for a, b in route if a // node != b // node}


@pytest.mark.parametrize(("chips", "nodes"), [(264, 33), (576, 9)])
def test_every_two_nodes_that_are_joined_share_one_cable_and_no_chip_holds_more_than_four(chips, nodes):
    used = cables(groq(chips), nodes)
    assert len(used) == nodes * (nodes - 1)
    assert len({(a // 8, b // 8) for a, b in used}) == nodes * (nodes - 1)
    holders = [a for a, _ in used]
    assert max(holders.count(chip) for chip in holders) <= 4


def test_the_cables_of_a_node_are_spread_over_its_chips_though_the_last_node_be_not_full():
    fabric = dragonfly(18, direct=18)  # four nodes of 4 and one of 2: four cables on the first node's four chips
    assert {a for a, _ in cables(fabric, 5) if a < 4} == {0, 1, 2, 3}


def test_a_message_changes_rack_at_most_once_though_the_last_rack_be_not_full():
    fabric = dragonfly(40, limit=40)
    for a in range(40):
        for b in range(40):
            assert sum(i // 12 != j // 12 for i, j in fabric.route(a, b)) == (a // 12 != b // 12)


# One message.


@pytest.mark.parametrize(
    ("topology", "a", "b", "time"),
    [
        (FullyConnected(link=LINK), 0, 3, 1 + 1),
        (Switch(link=LINK), 0, 3, 2 * 1 + 1),
        (Ring(link=LINK).sized(8), 0, 3, 3 * 1 + 1),
        (Ring(link=LINK).sized(8), 0, 6, 2 * 1 + 1),
        (dragonfly(20), 0, 3, 1 + 1),
        (dragonfly(20), 1, 6, 1 + 2 + 1 + 2),  # cable, cable between nodes, cable; the bytes once, at the narrowest
        (dragonfly(48), 11, 21, 1 + 2 + 2 + 2 + 1 + 2),  # to the rack's gateway, between racks, from the gateway
    ],
)
def test_a_message_pays_the_latency_of_each_hop_and_its_bytes_once(topology, a, b, time):
    assert us(topology.send(a, b, 1000)) == time


@given(topologies)
@settings(deadline=None)
def test_a_chip_reaches_itself_at_once(topology):
    assert topology.send(0, 0, 1000) == 0


# Collectives.


@pytest.mark.parametrize(
    ("topology", "chips", "nbytes", "time"),
    [
        (FullyConnected(link=LINK), 4, 1000, 1 + 1),  # one-shot: all to all at once
        (FullyConnected(link=LINK), 4, 8000, 2 * (1 + 2)),  # two-shot: two phases of a fourth each
        (Switch(link=LINK), 4, 1000, 2 + 3),  # one cable for the messages to three peers
        (Switch(link=LINK), 4, 8000, 2 * (2 + 3 * 2)),
        (Ring(link=LINK).sized(4), 4, 4000, 2 * 3 * (1 + 1)),
        (Ring(link=LINK).sized(9), 4, 4000, 2 * (3 * (1 + 1) + 2)),  # last to first: three links backwards, two more than one
        (Ring(link=LINK).sized(6), 5, 5000, 2 * (4 * (1 + 1) + 1)),  # last to first: two links onwards
        (Ring(link=LINK).sized(8), 2, 2000, 2 * (1 + 1)),
        (dragonfly(20), 4, 8000, 2 * (1 + 2)),
        (dragonfly(20), 8, 4000, 2 * (1 + 1) + (1 + 2 + 1) + 2),  # inside, between two nodes by three hops, inside
        (dragonfly(20), 12, 120000, 2 * (1 + 30) + 2 * (4 + 20)),  # two-shot between three nodes
        (dragonfly(20, direct_bandwidth=0.25e9), 8, 4000, 2 * (1 + 1) + 4 + 4),  # what a chip may send beyond its node
        (dragonfly(48, global_bandwidth=0.25e9), 8, 4000, 2 * (1 + 1) + 4 + 4),
        (dragonfly(20, direct_bandwidth=0.5e9), 12, 4000, 2 * (1 + 1) + 4 + 4),  # shared by two other nodes
        (dragonfly(20), 6, 4000, 2 * (1 + 2) + 4 + 4),  # four and two chips: the two exchange a half each
    ],
)
def test_all_reduce_takes_as_long_as_by_hand(topology, chips, nbytes, time):
    assert us(topology.all_reduce(range(chips), nbytes)) == time


@pytest.mark.parametrize(
    ("topology", "chips", "nbytes", "time"),
    [
        (FullyConnected(link=LINK), 4, 8000, 1 + 2),
        (Switch(link=LINK), 4, 8000, 2 + 3 * 2),
        (Ring(link=LINK).sized(4), 4, 4000, 3 * (1 + 1)),
        (Ring(link=LINK).sized(9), 4, 4000, 3 * (1 + 1) + 2),
        (dragonfly(20), 4, 8000, 1 + 2),
        (dragonfly(20), 8, 4000, (4 + 1) + (1 + 1)),  # an eighth to the other node, then a fourth to each inside
        (dragonfly(20), 6, 6000, (4 + 4) + (1 + 3)),  # four and two chips: the two take in a third each
    ],
)
def test_all_gather_takes_as_long_as_by_hand(topology, chips, nbytes, time):
    assert us(topology.all_gather(range(chips), nbytes)) == time


def test_a_group_at_another_place_of_the_dragonfly_meets_its_own_cables():
    fabric = dragonfly(48)
    assert us(fabric.all_reduce(range(4, 8), 8000)) == 2 * (1 + 2)  # the second node
    assert us(fabric.all_reduce(range(2, 6), 2000)) == 2 * (1 + 1) + 4 + 2  # astride two nodes
    assert us(fabric.all_reduce(range(8, 16), 4000)) == 2 * (1 + 1) + (1 + 2 + 2 + 1) + 2  # astride two racks


def test_software_adds_latency_to_each_phase_and_reaches_a_part_of_the_bandwidth():
    slow = {"latency": 1 * US, "efficiency": 0.5}
    assert us(FullyConnected(link=LINK).all_reduce(range(4), 1000, **slow)) == (1 + 1) + 2
    assert us(FullyConnected(link=LINK).all_gather(range(4), 8000, **slow)) == (1 + 1) + 4
    assert us(Ring(link=LINK).sized(4).all_reduce(range(4), 4000, **slow)) == 2 * 3 * ((1 + 1) + 2)
    assert us(dragonfly(20).all_reduce(range(8), 4000, **slow)) == 2 * ((1 + 1) + 2) + (4 + 1) + 4


@given(topologies, st.floats(0, 1e9))
@settings(deadline=None)
def test_a_group_of_one_says_nothing(topology, nbytes):
    assert topology.all_reduce(range(1), nbytes, 1.0, 0.5) == 0
    assert topology.all_gather(range(1), nbytes, 1.0, 0.5) == 0


@given(groups(), st.floats(0, 1e9), st.floats(0, 1e9))
@settings(deadline=None)
def test_more_bytes_never_take_less_time(group, one, other):
    topology, chips = group
    few, many = sorted((one, other))
    assert topology.all_reduce(chips, few) <= topology.all_reduce(chips, many)
    assert topology.all_gather(chips, few) <= topology.all_gather(chips, many)


@given(groups(smallest=2), st.floats(0, 1e9))
@settings(deadline=None)
def test_an_all_reduce_is_no_faster_than_an_all_gather_or_the_latency_between_its_ends(group, nbytes):
    topology, chips = group
    reduce, gather = topology.all_reduce(chips, nbytes), topology.all_gather(chips, nbytes)
    farthest = max(topology.lane(chips[0], chip).latency for chip in chips)
    assert reduce >= gather * (1 - 1e-12)
    assert gather >= farthest * (1 - 1e-12)


@given(groups(smallest=2), st.floats(0, 1e6), st.floats(0, 1e-4), st.floats(0.1, 1))
@settings(deadline=None)
def test_software_never_makes_a_collective_faster(group, nbytes, latency, efficiency):
    topology, chips = group
    assert topology.all_reduce(chips, nbytes, latency, efficiency) >= topology.all_reduce(chips, nbytes) + latency * (1 - 1e-9)


# How many chips.


def test_a_topology_joins_the_chips_of_a_replica_unless_its_file_says_how_many():
    assert Ring(link=LINK).sized(8).chips == 8
    assert Ring(link=LINK, chips=16).sized(8).chips == 16


@pytest.mark.parametrize(
    ("topology", "chips", "reason"),
    [
        (Switch(link=LINK, limit=8), 16, "the switch joins 8 chips at most, and 16 are asked for"),
        (dragonfly(4), 49, "the dragonfly joins 4 chips, and a replica has 49"),
        (Ring(link=LINK, chips=4), 8, "the ring joins 4 chips, and a replica has 8"),
        (Switch(link=LINK, chips=16, limit=8), 4, "the switch joins 8 chips at most, and 16 are asked for"),
    ],
)
def test_more_chips_than_a_topology_joins_are_refused(topology, chips, reason):
    with pytest.raises(ValueError, match=reason):
        topology.sized(chips)


def test_a_dragonfly_joins_no_more_than_its_limit():
    with pytest.raises(ValueError, match="the dragonfly joins 48 chips at most, and 49 are asked for"):
        dragonfly(49)
