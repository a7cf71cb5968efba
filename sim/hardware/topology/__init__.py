"""How chips are joined: routes, hops, the closed forms of what they say to each other, and the messages behind these.

Chips are numbered from 0; a group is a range of them (the chips of one stage).  A message costs the latency of each hop and
its bytes once, at the narrowest link (cut-through).  Software's share of a collective is given by the caller as a latency for
each phase and the part of the bandwidth it reaches; topologies know cables, not engines.

    base         what every topology answers; links, lanes, messages
    flat         one level: fully-connected, switch, bus, ring, line
    nested       levels of these in each other: mesh and torus (a line or a ring in each dimension), hierarchical (any in any)
    dragonfly    Groq's fabric

A wafer is one chip here: wafers are joined by a line, a ring or fully; whoever wants its cores apart describes them as the
chips of a mesh.
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
from sim.hardware.topology.flat import Bus, FullyConnected, Line, Ring, Switch
from sim.hardware.topology.nested import Hierarchical, Mesh, Nested, Torus

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
    "adding_phases",
    "all_to_all_gather",
    "everyone_to_everyone",
    "one_shot_all_reduce",
    "two_shot_all_reduce",
]
