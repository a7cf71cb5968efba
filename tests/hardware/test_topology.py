"""Routes keep to the cables there are; closed forms of collectives agree with sums made by hand."""

import math
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.hardware.topology import (
    TOPOLOGY_KINDS,
    Bus,
    Dragonfly,
    FullyConnected,
    Hierarchical,
    Line,
    Link,
    Mesh,
    Nested,
    Ring,
    Switch,
    Topology,
    Torus,
)

US = 1e-6
LINK = Link(latency=1 * US, bandwidth=1e9)  # 1,000 bytes take 1 us
GLOBAL = Link(latency=2 * US, bandwidth=0.5e9)  # 1,000 bytes take 2 us


def dragonfly(chips: int, **changes) -> Dragonfly:
    """Small and round: nodes of 4, racks of 3 nodes, direct up to 20 chips."""
    numbers = {
        "node": 4,
        "rack": 3,
        "direct": 20,
        "limit": 48,
        "direct_bandwidth": 1e9,
        "global_bandwidth": 1e9,
    }
    return Dragonfly(link=LINK, global_link=GLOBAL, **(numbers | changes)).sized(chips)


def groq(chips: int) -> Dragonfly:
    """The shape that Groq published: nodes of 8, racks of 9 nodes, direct up to 264 chips, 10,440 chips at most."""
    return dragonfly(chips, node=8, rack=9, direct=264, limit=10440)


def mesh(*dims: int) -> Mesh:
    return Mesh(link=LINK, dims=dims).sized(1)


def torus(*dims: int) -> Torus:
    return Torus(link=LINK, dims=dims).sized(1)


def nodes(n: int, size: int = 4) -> Hierarchical:
    """Nodes fully connected inside, joined by a slower switch."""
    return Hierarchical(levels=(FullyConnected(link=LINK, chips=size), Switch(link=GLOBAL))).sized(
        n * size
    )


def cluster(racks: int) -> Hierarchical:
    """Two rings of three in a rack, racks in a line; the rack is nested itself."""
    rack = Hierarchical(levels=(Ring(link=LINK, chips=3), Switch(link=LINK, chips=2)), chips=6)
    return Hierarchical(levels=(rack, Line(link=GLOBAL))).sized(6 * racks)


def us(seconds: float) -> float:
    return pytest.approx(seconds / US)


# Any topology, any two chips of it.  A dragonfly beyond its direct size is wired by whole racks.
sizes = st.integers(2, 24)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(
    lambda dims: math.prod(dims) > 1
)
grids = st.one_of(shapes.map(lambda dims: mesh(*dims)), shapes.map(lambda dims: torus(*dims)))
hierarchies = st.one_of(
    st.builds(nodes, st.integers(1, 6), st.integers(2, 5)), st.builds(cluster, st.integers(1, 5))
)
topologies = st.one_of(
    grids,
    hierarchies,
    st.builds(lambda n: Line(link=LINK).sized(n), sizes),
    st.builds(lambda n: FullyConnected(link=LINK).sized(n), sizes),
    st.builds(lambda n: Switch(link=LINK).sized(n), sizes),
    st.builds(lambda n: Bus(link=LINK).sized(n), sizes),
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
    return topology, range(
        first, draw(st.integers(first + smallest, min(topology.chips, first + 40)))
    )


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
    assert all(isinstance(place, str) or 0 <= place < topology.chips for place in places)
    assert len(set(route)) == len(route)
    assert {topology.link_of(hop) for hop in route} <= {LINK, GLOBAL}


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


@given(st.integers(2, 40), st.data())
def test_a_line_goes_from_neighbour_to_neighbour_and_never_past_its_ends(n, data):
    a, b = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    route = Line(link=LINK).sized(n).route(a, b)
    assert len(route) == abs(a - b)
    assert all(abs(i - j) == 1 for i, j in route)


@given(shapes, st.booleans(), st.data())
@settings(deadline=None)
def test_a_grid_corrects_one_dimension_after_the_other_the_last_first(dims, wraps, data):
    grid = (torus if wraps else mesh)(*dims)

    def place(chip: int) -> list[int]:
        return [chip // math.prod(dims[i + 1 :]) % n for i, n in enumerate(dims)]

    a, b = data.draw(st.integers(0, grid.chips - 1)), data.draw(st.integers(0, grid.chips - 1))
    changed = []
    for i, j in grid.route(a, b):
        (dimension,) = [
            d for d in range(len(dims)) if place(i)[d] != place(j)[d]
        ]  # one dimension a hop, to a neighbour there
        step = abs(place(i)[dimension] - place(j)[dimension])
        assert step == 1 or (wraps and step == dims[dimension] - 1)
        changed.append(dimension)
    assert changed == sorted(changed, reverse=True)
    away = [abs(i - j) for i, j in zip(place(a), place(b), strict=True)]
    assert len(changed) == sum(
        min(d, n - d) if wraps else d for d, n in zip(away, dims, strict=True)
    )


@given(journeys())
@settings(deadline=None)
def test_each_level_of_a_hierarchy_has_cables_of_its_own(journey):
    topology, a, b = journey
    if not isinstance(topology, Hierarchical):
        return
    part = topology.levels[0]
    same = a // part.chips == b // part.chips
    links = [topology.link_of(hop) for hop in topology.route(a, b)]
    assert (GLOBAL in links) == (not same)
    assert links == sorted(links, key=[LINK, GLOBAL].index), "inside first, then between"
    assert links.count(LINK) == part.hops(a % part.chips, b % part.chips)


def test_each_node_has_a_switch_of_its_own():
    racks = Hierarchical(levels=(Switch(link=LINK, chips=4), Switch(link=GLOBAL))).sized(8)
    inside = [
        {end for hop in racks.route(a, a + 1) for end in hop if isinstance(end, str)}
        for a in (0, 2, 4)
    ]
    assert inside[0] == inside[1] != inside[2]
    assert all(len(names) == 1 for names in inside)
    assert us(racks.send(0, 5, 1000)) == 2 * 1 + 2 * 2 + 2


# Groq's fabric.  Published (Abts et al., ISCA 2022): 3 hops up to 264 chips, 5 up to 10,440; 4 cables to other nodes on a chip.


@given(
    st.one_of(st.integers(1, 33).map(lambda n: 8 * n), st.integers(4, 145).map(lambda n: 72 * n)),
    st.data(),
)
@settings(deadline=None)
def test_a_dragonfly_keeps_within_the_published_hops(chips, data):
    a, b = data.draw(st.integers(0, chips - 1)), data.draw(st.integers(0, chips - 1))
    fabric = groq(chips)
    hops = fabric.hops(a, b)
    assert hops == len(fabric.route(a, b))
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


@pytest.mark.parametrize(("chips", "rate"), [(264, 50e9), (272, 14e9), (10440, 14e9)])
def test_a_chip_sends_no_more_to_other_nodes_than_was_published(chips, rate):
    link = Link(latency=1 * US, bandwidth=15e9)
    sizes = {"node": 8, "rack": 9, "direct": 264, "limit": 10440}
    fabric = Dragonfly(
        link=link, global_link=link, **sizes, direct_bandwidth=50e9, global_bandwidth=14e9
    ).sized(chips)
    nbytes = 1e12
    assert nbytes * (1 - 8 / chips) / fabric.all_to_all(range(chips), nbytes) == pytest.approx(rate)


def cables(fabric: Dragonfly, nodes: int) -> set[tuple[int, int]]:
    """The cables between nodes that messages among the first `nodes` nodes use, from chip to chip."""
    node = fabric.node
    routes = [fabric.route(node * a, node * b) for a in range(nodes) for b in range(nodes)]
    return {(a, b) for route in routes for a, b in route if a // node != b // node}


@pytest.mark.parametrize(("chips", "nodes"), [(264, 33), (576, 9)])
def test_every_two_nodes_that_are_joined_share_one_cable_and_no_chip_holds_more_than_four(
    chips, nodes
):
    used = cables(groq(chips), nodes)
    assert len(used) == nodes * (nodes - 1)
    assert len({(a // 8, b // 8) for a, b in used}) == nodes * (nodes - 1)
    holders = [a for a, _ in used]
    assert max(holders.count(chip) for chip in holders) <= 4


def test_the_cables_of_a_node_are_spread_over_its_chips_though_the_last_node_be_not_full():
    fabric = dragonfly(
        18, direct=18
    )  # four nodes of 4 and one of 2: four cables on the first node's four chips
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
        (
            dragonfly(20),
            1,
            6,
            1 + 2 + 1 + 2,
        ),  # cable, cable between nodes, cable; the bytes once, at the narrowest
        (Line(link=LINK).sized(8), 0, 6, 6 * 1 + 1),
        (mesh(3, 4), 0, 11, (2 + 3) * 1 + 1),
        (torus(3, 4), 0, 11, (1 + 1) * 1 + 1),
        (mesh(2, 3, 4), 0, 23, (1 + 2 + 3) * 1 + 1),
        (nodes(3), 0, 4, 2 * 2 + 2),  # a node further at the same place: by the switch alone
        (nodes(3), 1, 6, 1 + 2 * 2 + 2),  # to the right place inside, then by the switch
        (
            cluster(4),
            0,
            6 * 3 + 4,
            1 + 2 + 3 * 2 + 2,
        ),  # a ring's neighbour, the other ring, three racks on
        (
            dragonfly(48),
            11,
            21,
            1 + 2 + 2 + 2 + 1 + 2,
        ),  # to the rack's gateway, between racks, from the gateway
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
        (
            Ring(link=LINK).sized(4),
            4,
            4000,
            2 * ((1 + 1) + (1 + 0.5)),
        ),  # both ways; the opposite chip gets a half from each side
        (
            Ring(link=LINK).sized(9),
            4,
            4000,
            2 * 3 * (1 + 1),
        ),  # a part is a chain: the last chip hears of the first in three phases
        (Ring(link=LINK).sized(5), 5, 5000, 2 * 2 * (1 + 1)),
        (Ring(link=LINK).sized(6), 5, 5000, 2 * 4 * (1 + 1)),
        (Ring(link=LINK).sized(8), 2, 2000, 2 * (1 + 1)),
        (Line(link=LINK).sized(4), 4, 4000, 2 * 3 * (1 + 1)),
        (mesh(3, 4), 4, 4000, 2 * 3 * (1 + 1)),  # one row
        (torus(3, 4), 4, 4000, 2 * ((1 + 1) + (1 + 0.5))),
        (
            torus(4, 4),
            16,
            16000,
            2 * ((1 + 0.5) + (1 + 0.25) + (1 + 2) + (1 + 1)),
        ),  # two halves, rows first and columns first
        (
            torus(3, 4),
            12,
            12000,
            2 * ((1 + 0.5) + (1 + 1.5 + 0.25) + (1 + 2)),
        ),  # in the middle both halves are in the rows
        (mesh(3, 4), 8, 8000, 2 * ((1 + 0.5) + 2 * (1 + 1 + 0.5) + (1 + 2))),  # two whole rows
        (
            mesh(3, 4),
            6,
            6000,
            2 * 5 * (1 + 1),
        ),  # four and two: a chain from the end of the row to its beginning, then down
        (nodes(3), 4, 8000, 2 * (1 + 2)),
        (nodes(3), 8, 4000, 2 * (1 + 1) + 2 * 2 + 2),  # inside, between two nodes, inside
        (
            nodes(3),
            12,
            120000,
            2 * (1 + 30) + 2 * (4 + 2 * 20),
        ),  # a chip's two peers share its cable to the switch
        (
            nodes(3),
            6,
            4000,
            2 * (1 + 2) + (1 + 4) + 4,
        ),  # four and two: a half each, by a way of one inside
        (cluster(2), 12, 12000, 2 * (1 + 4) + 2 * (2 + 2) + 2 * (2 + 2)),  # three levels
        (dragonfly(20), 4, 8000, 2 * (1 + 2)),
        (
            dragonfly(20),
            8,
            4000,
            2 * (1 + 1) + (1 + 2 + 1) + 2,
        ),  # inside, between two nodes by three hops, inside
        (dragonfly(20), 12, 120000, 2 * (1 + 30) + 2 * (4 + 20)),  # two-shot between three nodes
        (
            dragonfly(20, direct_bandwidth=0.25e9),
            8,
            4000,
            2 * (1 + 1) + 4 + 4,
        ),  # what a chip may send beyond its node
        (dragonfly(48, global_bandwidth=0.25e9), 8, 4000, 2 * (1 + 1) + 4 + 4),
        (
            dragonfly(20, direct_bandwidth=0.5e9),
            12,
            4000,
            2 * (1 + 1) + 4 + 4,
        ),  # shared by two other nodes
        (
            dragonfly(20),
            6,
            4000,
            2 * (1 + 2) + 4 + 4,
        ),  # four and two chips: the two exchange a half each
    ],
)
def test_all_reduce_takes_as_long_as_by_hand(topology, chips, nbytes, time):
    assert us(topology.all_reduce(range(chips), nbytes)) == time


@pytest.mark.parametrize(
    ("topology", "chips", "nbytes", "time"),
    [
        (FullyConnected(link=LINK), 4, 8000, 1 + 2),
        (Switch(link=LINK), 4, 8000, 2 + 3 * 2),
        (Ring(link=LINK).sized(4), 4, 4000, (1 + 1) + (1 + 0.5)),
        (Ring(link=LINK).sized(9), 4, 4000, 3 * (1 + 1)),
        (torus(3, 4), 12, 12000, (1 + 0.5) + (1 + 1.5 + 0.25) + (1 + 2)),
        (mesh(3, 4), 8, 8000, (1 + 0.5) + 2 * (1 + 1 + 0.5) + (1 + 2)),
        (nodes(3), 8, 8000, (1 + 2) + (4 + 2)),
        (nodes(3), 6, 6000, (1 + 3) + (1 + 4 + 2 * 1.5)),
        (dragonfly(20), 4, 8000, 1 + 2),
        (
            dragonfly(20),
            8,
            4000,
            (4 + 1) + (1 + 1),
        ),  # an eighth to the other node, then a fourth to each inside
        (
            dragonfly(20),
            6,
            6000,
            (4 + 4) + (1 + 3),
        ),  # four and two chips: the two take in a third each
    ],
)
def test_all_gather_takes_as_long_as_by_hand(topology, chips, nbytes, time):
    assert us(topology.all_gather(range(chips), nbytes)) == time


@pytest.mark.parametrize(
    ("topology", "chips", "nbytes", "time"),
    [
        (FullyConnected(link=LINK), 4, 8000, 1 + 2),
        (Switch(link=LINK), 4, 8000, 2 + 3 * 2),
        (Ring(link=LINK).sized(2), 2, 2000, 1 + 1),
        (
            Ring(link=LINK).sized(5),
            5,
            5000,
            2 + (1 + 2),
        ),  # messages to the next and the one after share a link
        (Ring(link=LINK).sized(4), 4, 4000, 2 + (1 + 2)),  # the way to the opposite chip is onwards
        (Line(link=LINK).sized(4), 4, 4000, 3 + 4),  # two by two across the middle
        (Ring(link=LINK).sized(9), 4, 4000, 3 + 4),
        (
            torus(3, 4),
            12,
            12000,
            2 * (2 + 3 * 1.5),
        ),  # a half in the rows while the other is in the columns: the rows take longer
        (mesh(3, 4), 8, 8000, 2 * (3 + 4 * 1)),
        (
            nodes(3),
            8,
            8000,
            (4 + 8) + 1,
        ),  # between the nodes and inside at once; then the last piece is handed on inside
        (nodes(3), 8, 80, (4 + 0.08) + 1),
        (dragonfly(20), 4, 8000, 1 + 2),
    ],
)
def test_all_to_all_takes_as_long_as_by_hand(topology, chips, nbytes, time):
    assert us(topology.all_to_all(range(chips), nbytes)) == time


def test_what_goes_to_several_chips_of_a_node_goes_there_once():
    """Each chip sends 8,000 bytes inside; between two nodes a half as much, or a tenth, and then inside takes longer."""
    assert us(nodes(3).all_to_all(range(8), 8000, copies=(1.0, 0.5))) == (4 + 4) + 1
    assert us(nodes(3).all_to_all(range(8), 80000, copies=(1.0, 0.1))) == (1 + 20) + 1
    assert nodes(3).all_to_all(range(8), 8000, copies=(1.0, 1.0)) == nodes(3).all_to_all(
        range(8), 8000
    )
    between = nodes(3).messages("all_to_all", range(8), (1.0, 0.5))[0]
    assert sum(m.share for m in between if m.source // 4 != m.target // 4) == pytest.approx(
        8 * 0.5 * 0.5
    )
    assert sum(m.share for m in between if m.source // 4 == m.target // 4) == pytest.approx(
        8 * 1.0 * 0.75
    )


def test_blocks_of_a_group_are_its_chips_nodes_and_racks():
    assert nodes(3).blocks(range(12)) == (12, 3)
    assert nodes(3).blocks(range(4)) == (4,)  # one node
    assert nodes(3).blocks(range(2, 6)) == (4, 2)
    racks = Hierarchical(
        levels=(Switch(link=LINK, chips=2), Switch(link=LINK, chips=3), Switch(link=GLOBAL))
    ).sized(24)
    assert racks.blocks(range(24)) == (24, 12, 4)
    assert Hierarchical(levels=(Switch(link=LINK, chips=1), Switch(link=GLOBAL))).sized(4).blocks(
        range(4)
    ) == (4,)
    assert torus(3, 4).blocks(range(12)) == Switch(link=LINK).sized(12).blocks(range(12)) == (12,)


@given(
    st.one_of(
        topologies.filter(lambda topology: not isinstance(topology, Dragonfly)),
        st.builds(mesh, sizes),
    )
)
@settings(deadline=None, max_examples=40)
def test_an_all_to_all_is_no_faster_than_its_busiest_link(topology):
    """A dragonfly is left out: its cables between nodes are charged by the published rate of a chip."""
    chips = range(topology.chips)
    loads = Counter(hop for pair in permutations(chips, 2) for hop in topology.route(*pair))
    busiest = max(
        (load / len(chips) / topology.link_of(hop).bandwidth for hop, load in loads.items()),
        default=0.0,
    )
    assert topology.all_to_all(chips, 1e6) >= 1e6 * busiest


@pytest.mark.parametrize("dims", [(16, 16), (8, 8), (4, 4, 4), (3, 3), (9,), (8,)])
def test_a_torus_uses_all_its_links_both_ways(dims):
    """The published bound: an all-gather takes its bytes over both directions of all dimensions.

    Its latency is that of half a ring in each dimension.  Source: https://jax-ml.github.io/scaling-book/sharding/
    """
    grid, n, nbytes = torus(*dims), math.prod(dims), 1e9
    bound = nbytes * (n - 1) / n / (2 * len(dims) * LINK.bandwidth)
    latency = sum(side // 2 for side in dims) * LINK.latency
    assert grid.all_gather(range(n), nbytes) == pytest.approx(latency + bound, rel=1e-12)
    assert grid.all_reduce(range(n), nbytes) == pytest.approx(2 * (latency + bound), rel=1e-12)


@given(shapes, st.booleans(), st.floats(0, 1e9))
@settings(deadline=None)
def test_no_collective_of_a_grid_is_faster_than_its_chips_links(dims, wraps, nbytes):
    """A corner has the fewest links, a chip of a ring two (of two chips one), and all that others hold comes in by them."""
    grid, n = (torus if wraps else mesh)(*dims), math.prod(dims)
    links = sum(min(side - 1, 2) if wraps else min(side - 1, 1) for side in dims)
    bound = nbytes * (n - 1) / n / (links * LINK.bandwidth)
    latency = sum(side // 2 if wraps else side - 1 for side in dims) * LINK.latency
    for time in (grid.all_gather(range(n), nbytes), grid.all_reduce(range(n), nbytes) / 2):
        assert max(bound, latency) * (1 - 1e-12) <= time <= (latency + 3 * bound) * (1 + 1e-12)


def test_a_part_of_a_grid_says_whether_its_messages_meet():
    """Case: stage and chip fidelity differed by a quarter where rows of three did not divide groups of four."""
    grid = mesh(4, 3)
    assert grid.uncontended(range(4)) == {
        "all_reduce",
        "all_gather",
    }  # 2, 1, 0 and below it 3: a chain of neighbours
    assert (
        grid.uncontended(range(4, 8)) == frozenset()
    )  # from the end of the row to the beginning of the next
    assert grid.uncontended(range(6)) == {"all_reduce", "all_gather"}
    assert mesh(4, 2, 2).uncontended(range(12)) == frozenset()  # three unequal dimensions


def test_one_level_of_a_hierarchy_does_what_its_topology_does():
    switch, whole = Switch(link=GLOBAL), nodes(5)
    for nbytes in (1e3, 1e6):
        assert whole.all_reduce(range(4, 8), nbytes) == FullyConnected(link=LINK).all_reduce(
            range(4), nbytes
        )
        line = Hierarchical(levels=(FullyConnected(link=LINK, chips=1), switch)).sized(8)
        assert line.all_reduce(range(8), nbytes) == switch.all_reduce(range(8), nbytes)
        assert torus(1, 6).all_reduce(range(6), nbytes) == Ring(link=LINK).sized(6).all_reduce(
            range(6), nbytes
        )


def test_a_group_of_a_mesh_may_begin_anywhere():
    grid = mesh(4, 4)
    assert us(grid.all_reduce(range(5, 7), 2000)) == 2 * (1 + 1)  # within a row
    assert us(grid.all_reduce(range(4, 12), 8000)) == us(grid.all_reduce(range(8), 8000)).expected
    assert us(grid.all_reduce(range(3, 5), 2000)) == 2 * (
        4 + 1
    )  # the end of a row and the beginning of the next


def test_an_engine_may_have_only_some_of_the_ways():
    wires = FullyConnected(link=LINK)
    assert us(wires.all_reduce(range(4), 1000)) == 1 + 1
    assert us(wires.fastest(range(4), 1000, allowed=["two-shot"])[0]) == 2 * (1 + 0.25)
    assert us(wires.fastest(range(4), 8000, allowed=["one-shot"])[0]) == 1 + 8
    assert wires.fastest(range(4), 8000, allowed=["one-shot", "two-shot", "ring"])[
        0
    ] == wires.all_reduce(range(4), 8000)
    with pytest.raises(
        ValueError,
        match="got one-shot or two-shot; expected ring, the all-reduce that the ring has",
    ):
        Ring(link=LINK).sized(4).fastest(range(4), 8000, allowed=["one-shot", "two-shot"])[0]
    for several in (nodes(2), dragonfly(8)):
        assert several.fastest(range(8), 8000, allowed=["hierarchical"])[0] == several.all_reduce(
            range(8), 8000
        )
        with pytest.raises(ValueError, match="got one-shot; expected"):
            several.fastest(range(8), 8000, allowed=["one-shot"])[0]


def test_a_group_at_another_place_of_the_dragonfly_meets_its_own_cables():
    fabric = dragonfly(48)
    assert us(fabric.all_reduce(range(4, 8), 8000)) == 2 * (1 + 2)  # the second node
    assert us(fabric.all_reduce(range(2, 6), 2000)) == 2 * (1 + 1) + 4 + 2  # astride two nodes
    assert (
        us(fabric.all_reduce(range(8, 16), 4000)) == 2 * (1 + 1) + (1 + 2 + 2 + 1) + 2
    )  # astride two racks


def test_software_adds_latency_to_each_phase_and_reaches_a_part_of_the_bandwidth():
    slow = {"latency": 1 * US, "efficiency": 0.5}
    assert us(FullyConnected(link=LINK).all_reduce(range(4), 1000, **slow)) == (1 + 1) + 2
    assert us(FullyConnected(link=LINK).all_gather(range(4), 8000, **slow)) == (1 + 1) + 4
    assert us(Ring(link=LINK).sized(4).all_reduce(range(4), 4000, **slow)) == 2 * (
        (1 + 1 + 2) + (1 + 1 + 1)
    )
    assert us(dragonfly(20).all_reduce(range(8), 4000, **slow)) == 2 * ((1 + 1) + 2) + (4 + 1) + 4


@given(topologies, st.floats(0, 1e9))
@settings(deadline=None)
def test_a_group_of_one_says_nothing(topology, nbytes):
    assert topology.all_reduce(range(1), nbytes, 1.0, 0.5) == 0
    assert topology.all_gather(range(1), nbytes, 1.0, 0.5) == 0
    assert topology.all_to_all(range(1), nbytes, 1.0, 0.5) == 0


@given(
    groups(),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=5),
    st.floats(0, 1e-4),
    st.floats(0.1, 1),
)
@settings(deadline=None)
def test_times_of_an_array_of_bytes_are_those_of_each_number(group, sizes, latency, efficiency):
    topology, chips = group
    assert topology.takes_arrays
    for collective in (topology.all_reduce, topology.all_gather, topology.all_to_all):
        together = collective(chips, np.array(sizes), latency, efficiency)
        alone = [collective(chips, nbytes, latency, efficiency) for nbytes in sizes]
        assert np.broadcast_to(together, len(sizes)).tolist() == alone


def test_a_topology_of_a_users_own_kind_is_asked_for_one_number_of_bytes_at_a_time():
    class Slow(Ring):
        """A ring whose `all_gather` need not take arrays."""

    own = Slow(link=LINK, chips=4)
    assert not own.takes_arrays
    assert not Hierarchical(levels=(own, Switch(link=LINK))).sized(8).takes_arrays


@given(groups(), st.floats(0, 1e9), st.floats(0, 1e9))
@settings(deadline=None)
def test_more_bytes_never_take_less_time(group, one, other):
    topology, chips = group
    few, many = sorted((one, other))
    assert topology.all_reduce(chips, few) <= topology.all_reduce(chips, many)
    assert topology.all_gather(chips, few) <= topology.all_gather(chips, many)
    assert topology.all_to_all(chips, few) <= topology.all_to_all(chips, many)


@given(groups(smallest=2), st.floats(0, 1e9))
@settings(deadline=None)
def test_an_all_reduce_is_no_faster_than_an_all_gather_or_the_latency_between_its_ends(
    group, nbytes
):
    topology, chips = group
    reduce, gather = topology.all_reduce(chips, nbytes), topology.all_gather(chips, nbytes)
    farthest = max(topology.channel(chips[0], chip).latency for chip in chips)
    assert reduce >= gather * (1 - 1e-12)
    assert gather >= farthest * (1 - 1e-12)


@given(groups(smallest=2), st.floats(0, 1e6), st.floats(0, 1e-4), st.floats(0.1, 1))
@settings(deadline=None)
def test_software_never_makes_a_collective_faster(group, nbytes, latency, efficiency):
    topology, chips = group
    for operation in (topology.all_reduce, topology.all_gather, topology.all_to_all):
        assert operation(chips, nbytes, latency, efficiency) >= operation(
            chips, nbytes
        ) + latency * (1 - 1e-9)


# How many chips.


def test_a_topology_joins_the_chips_of_a_replica_unless_its_file_says_how_many():
    assert Ring(link=LINK).sized(8).chips == 8
    assert Ring(link=LINK, chips=16).sized(8).chips == 16


@pytest.mark.parametrize(
    ("topology", "chips", "reason"),
    [
        (Switch(link=LINK, limit=8), 16, "switch: got 16 chips; expected at most 8"),
        (dragonfly(4), 49, "dragonfly: got a replica of 49 chips; expected at most 4"),
        (Ring(link=LINK, chips=4), 8, "ring: got a replica of 8 chips; expected at most 4"),
        (Mesh(link=LINK, dims=(3, 4)), 13, "mesh: got a replica of 13 chips; expected at most 12"),
        (
            Torus(link=LINK, dims=(3, 4), chips=8),
            8,
            "torus: got chips 8; expected 12, the product of dims",
        ),
        (
            nodes(2).model_copy(update={"chips": 8}),
            9,
            "hierarchical: got a replica of 9 chips; expected at most 8",
        ),
        (
            Hierarchical(levels=(Ring(link=LINK, chips=4), Switch(link=LINK, limit=8))),
            33,
            "hierarchical: got 33 chips; expected at most 32",
        ),
        (
            Hierarchical(levels=(Ring(link=LINK, chips=4), Switch(link=LINK, chips=2))),
            9,
            "hierarchical: got 9 chips; expected at most 8",
        ),
        (
            Switch(link=LINK, chips=16, limit=8),
            4,
            "switch: got 16 chips; expected at most 8",
        ),
    ],
)
def test_more_chips_than_a_topology_joins_are_refused(topology, chips, reason):
    with pytest.raises(ValueError, match=reason):
        topology.sized(chips)


def test_a_dragonfly_joins_no_more_than_its_limit():
    with pytest.raises(ValueError, match="dragonfly: got 49 chips; expected at most 48"):
        dragonfly(49)


def test_grids_and_hierarchies_join_whole_blocks():
    assert mesh(3, 4).sized(5).chips == 12
    assert nodes(1).sized(4).chips == 4
    assert Hierarchical(levels=(Ring(link=LINK, chips=4), Switch(link=LINK))).sized(9).chips == 12
    assert (
        Hierarchical(levels=(Ring(link=LINK, chips=4), Switch(link=LINK, chips=8))).sized(9).chips
        == 32
    )
    assert (
        Hierarchical(levels=(Ring(link=LINK, chips=4), Switch(link=LINK)), chips=16).sized(9).chips
        == 16
    )


def test_the_fewest_chips_may_be_looked_for_after_sizing():
    for topology in (nodes(2), mesh(3, 4), Ring(link=LINK).sized(4)):
        assert topology.model_copy(update={"chips": None}).sized(12).chips == 12


def test_an_inner_level_says_its_size():
    with pytest.raises(
        ValueError,
        match=r"levels\.0: got a ring without chips; expected chips in all but the outermost level",
    ):
        Hierarchical(levels=(Ring(link=LINK), Switch(link=LINK)))
    with pytest.raises(ValueError, match="switch: got 16 chips; expected at most 8"):
        Hierarchical(levels=(Switch(link=LINK, chips=16, limit=8), Switch(link=LINK)))


def test_the_laws_are_tried_on_every_kind():
    tried = {FullyConnected, Switch, Bus, Ring, Line, Mesh, Torus, Hierarchical, Dragonfly}
    assert set(TOPOLOGY_KINDS.values()) == tried
    assert {kind for kind in tried if issubclass(kind, Nested)} == {Mesh, Torus, Hierarchical}


# The messages behind the closed forms.


@given(groups(smallest=2), st.sampled_from(["all_reduce", "all_gather", "all_to_all"]))
@settings(max_examples=60)
def test_after_a_collective_every_chip_has_heard_of_every_other(group, operation):
    """Phase by phase, a chip passes on what it knew when the phase began; and nobody speaks beyond the group."""
    topology, chips = group
    ways = topology.all_reduces(chips, 1000, 0.0, 1.0) if operation == "all_reduce" else [()]
    for way in ways:
        known = {chip: {chip} for chip in chips}
        for phase in topology.messages(operation, chips, way):
            before = {chip: set(heard) for chip, heard in known.items()}
            for message in phase:
                known[message.target] |= before[message.source]
        assert all(heard == set(chips) for heard in known.values())


@given(groups(smallest=2))
@settings(max_examples=50)
def test_the_bytes_of_a_collective_are_no_fewer_than_anyone_could_do_with(group):
    """To end with what the others held a chip is sent at least their share of it; twice that for a sum, over all chips."""
    topology, chips = group
    n = len(chips)
    for operation, least in (
        ("all_gather", n - 1),
        ("all_reduce", 2 * (n - 1)),
        ("all_to_all", n - 1),
    ):
        ways = topology.all_reduces(chips, 1000, 0.0, 1.0) if operation == "all_reduce" else [()]
        for way in ways:
            sent = sum(m.share for phase in topology.messages(operation, chips, way) for m in phase)
            assert sent >= least - 1e-9


@given(groups(smallest=2), st.sampled_from(["all_reduce", "all_gather", "all_to_all"]))
@settings(max_examples=60)
def test_a_byte_crosses_the_cables_on_the_routes_of_its_messages(group, operation):
    topology, chips = group
    ways = topology.all_reduces(chips, 1000, 0.0, 1.0) if operation == "all_reduce" else [()]
    for way in ways:
        sent = [m for phase in topology.messages(operation, chips, way) for m in phase]
        crossed = sum(m.share * len(topology.route(m.source, m.target)) for m in sent)
        assert topology.cables_crossed(operation, chips, way) == pytest.approx(crossed, rel=1e-9)


def test_a_chip_is_sent_no_two_messages_in_one_turn():
    """Everyone to everyone goes in turns, or the receivers' cables would be the bottleneck."""
    messages = Switch(link=LINK).sized(6).messages("all_gather", range(6))[0]
    for turn in range(5):
        assert sorted(m.target for m in messages[6 * turn : 6 * turn + 6]) == list(range(6))


class OwnTopology(FullyConnected):
    """A user's topology whose messages go through chip 0."""

    def route(self, a: int, b: int):
        return ((a, 0), (0, b)) if a and b and a != b else super().route(a, b)

    uncontended = Topology.uncontended


def test_a_users_topology_promises_no_agreement_with_its_closed_forms():
    assert OwnTopology(link=LINK).uncontended(range(4)) == frozenset()
    assert len(FullyConnected(link=LINK).uncontended(range(4))) == 3
