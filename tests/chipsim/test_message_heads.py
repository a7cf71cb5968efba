"""Messages on paths of two cables, by hand."""

import simpy

from sim.chipsim.message_heads import MessageHeads, Shipment
from sim.chipsim.network import Cable, PathSegment


def test_messages_queue_on_both_cables_of_their_path():
    """Two messages from each of two chips to one switch, which sends all of them to a third chip.

    A message takes a cable for 3 s, and a hop takes 1 s. The heads are at the switch after 1 and
    4 s, two at a time. The last cable is taken from 1 to 13 s without a break.
    """
    env, arrivals = simpy.Environment(), []
    heads, last = MessageHeads(env), PathSegment(Cable("switch -> 2"), 1.0, 0.5)
    paths = [(PathSegment(Cable(f"{chip} -> switch"), 1.0, 0.5), last) for chip in (0, 1)]
    for shipment in (Shipment(6.0, "a"), Shipment(6.0, "b")):
        heads.forward((path, shipment, arrivals.append) for path in paths)
    assert sorted(heads.by_time) == [1.0, 4.0]
    env.run()
    assert env.now == 4.0
    assert arrivals == [5.0, 8.0, 11.0, 14.0]
    assert [path[0].cable.waited for path in paths] == [3.0, 3.0]
    assert last.cable.waited == 7.0 - 4.0  # the other message of b waits for its own shipment


def test_a_hop_may_take_no_time():
    """A head passes all its cables at one instant, however many these are."""
    env, arrivals = simpy.Environment(), []
    path = [PathSegment(Cable(name), 0.0, 0.0) for name in "abc"]
    MessageHeads(env).forward([(path, Shipment(1.0, ""), arrivals.append)] * 2)
    env.run()
    assert arrivals == [0.0, 0.0]
