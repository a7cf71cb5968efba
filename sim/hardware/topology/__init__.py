"""How chips are joined: routes, hops, times of collectives, and the messages behind these times.

    >>> from sim.hardware.topology import Ring
    >>> Ring(link={"latency": "1 us", "bandwidth": "10 GB/s"}).sized(8).hops(0, 6)
    2

Chips are numbered from 0. A group is a range of them, such as the chips of one stage.
A message costs the latency of each hop, and its bytes once at the narrowest link (cut-through).
The caller gives software's share of a collective: a latency for each phase, and the part of the
bandwidth that it reaches. Topologies know cables, not engines.

Read `base` first (what every topology has), then `flat` (switch, ring, line). `nested` and `mesh`
have levels of these, `dragonfly` has Groq's fabric.

A wafer is one chip here, and wafers are joined by a line, a ring or fully. A chip file can also
describe the cores of a wafer as the chips of a mesh.
"""

from sim.hardware.topology.base import (
    TOPOLOGY_KINDS,
    Algorithm,
    AllReduce,
    Channel,
    Copies,
    Hop,
    Link,
    Message,
    Operation,
    Phase,
    Segment,
    Topology,
    TopologyField,
    adding_phases,
    all_to_all_gather,
    everyone_to_everyone,
    one_shot_all_reduce,
    two_shot_all_reduce,
)
from sim.hardware.topology.dragonfly import Dragonfly
from sim.hardware.topology.flat import Bus, FullyConnected, Line, Ring, Switch, Unlinked
from sim.hardware.topology.mesh import Mesh, Torus
from sim.hardware.topology.nested import Hierarchical, Nested

TOPOLOGY_KINDS |= {
    "fully-connected": FullyConnected,
    "switch": Switch,
    "bus": Bus,
    "ring": Ring,
    "line": Line,
    "mesh": Mesh,
    "torus": Torus,
    "hierarchical": Hierarchical,
    "dragonfly": Dragonfly,
}

__all__ = [
    "TOPOLOGY_KINDS",
    "Algorithm",
    "AllReduce",
    "Bus",
    "Channel",
    "Copies",
    "Dragonfly",
    "FullyConnected",
    "Hierarchical",
    "Hop",
    "Line",
    "Link",
    "Mesh",
    "Message",
    "Nested",
    "Operation",
    "Phase",
    "Ring",
    "Segment",
    "Switch",
    "Topology",
    "TopologyField",
    "Torus",
    "Unlinked",
    "adding_phases",
    "all_to_all_gather",
    "everyone_to_everyone",
    "one_shot_all_reduce",
    "two_shot_all_reduce",
]
