"""The turns of micro-batches at the stages of a pipeline, compiled: it adds and compares numbers, and knows no physics.

Micro-batches come back in the order in which they entered, for stages serve first come first served: a ring of them is enough.
Times are counted from the last entry's clock, and what clocks round away (`lost`) is carried on.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.records import BINS_PER_DECADE

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# Places in the arrays: of the ring, of each micro-batch, and of all.
HEAD, LENGTH, GONE = 0, 1, 2
DONE, DUE, DECODES, SILENT = 0, 1, 2, 3
BACK, LEAVE, LOST = 0, 1, 2
CLOCK, RETURN, COUNT, TOTAL, SQUARES = 0, 1, 2, 3, 4
LEAST = -12 * BINS_PER_DECADE  # the first bin: no gap is shorter than 1e-12 s
BINS = 24 * BINS_PER_DECADE


@njit(cache=True)
def enter(slot, now, lost, stage, hops, times, growths, each, counts, ring, order, sums, bins):
    """A step of one micro-batch from the queue of the first stage to its return."""
    free, busy = stage[0], stage[1]
    passed = now - sums[CLOCK] + lost
    sums[CLOCK] = now
    leave, done = 0.0, counts[slot, DONE]
    for s in range(len(free)):
        time = times[slot, s] + done * growths[slot, s]
        leave = max(leave + hops[slot, s], free[s] - passed) + time
        free[s] = leave + lost
        busy[s] += time
    wait = lost + leave + sums[RETURN]
    back = now + wait
    each[slot, BACK], each[slot, LEAVE], each[slot, LOST] = back, now + (lost + leave), wait - (back - now)
    if counts[slot, DECODES]:
        gap, decodes = leave + sums[RETURN], counts[slot, DECODES]
        place = math.floor(math.log10(gap) * BINS_PER_DECADE) - LEAST
        bins[min(max(place, 0), BINS - 1)] += decodes
        sums[COUNT] += decodes
        sums[TOTAL] += decodes * gap
        sums[SQUARES] += decodes * gap * gap
    counts[slot, DONE] = done + 1
    order[(ring[HEAD] + ring[LENGTH]) % len(order)] = slot
    ring[LENGTH] += 1


@njit(cache=True)
def join(
    slot, now, lost, steps, decodes, silent, body, sampling, layers, seconds, more, way,
    stage, hops, times, growths, each, counts, ring, order, gone, sums, bins,
):  # fmt: skip
    """A micro-batch enters with a new passage: its time at each stage, from seconds and what further steps add to them for each
    kind of attention.  Gives the head of the ring, as `advance` does."""
    kinds, stages = layers.shape
    for s in range(stages):
        time, growth = body[s], 0.0
        for kind in range(kinds):
            time += layers[kind, s] * seconds[kind]
            growth += layers[kind, s] * more[kind]
        times[slot, s], growths[slot, s], hops[slot, s] = time, growth, way[s]
    times[slot, stages - 1] += sampling
    counts[slot, DONE], counts[slot, DUE], counts[slot, DECODES], counts[slot, SILENT] = 0, steps, decodes, silent
    enter(slot, now, lost, stage, hops, times, growths, each, counts, ring, order, sums, bins)
    return head(order[ring[HEAD]], each, counts)


@njit(cache=True)
def head(slot, each, counts):
    """Who is back first: when, who, after how many steps and whether these were all; when it left, and what the clock lost."""
    done = counts[slot, DONE]
    return each[slot, BACK], slot, done, done == counts[slot, DUE], each[slot, LEAVE], each[slot, LOST]


@njit(cache=True)
def advance(now, until, stage, hops, times, growths, each, counts, ring, order, gone, sums, bins):
    """Micro-batches that are back before `until` (or now) enter again while they have steps left, and are gone where there is
    nothing to say of them.  Gives the head of the ring, of which that is not true."""
    while ring[LENGTH]:
        slot = order[ring[HEAD]]
        back, last = each[slot, BACK], counts[slot, DONE] == counts[slot, DUE]
        if (last and not counts[slot, SILENT]) or (back >= until and (last or back > now)):
            break
        ring[HEAD] = (ring[HEAD] + 1) % len(order)
        ring[LENGTH] -= 1
        if last:
            gone[ring[GONE]] = slot
            ring[GONE] += 1
        else:
            enter(slot, back, each[slot, LOST], stage, hops, times, growths, each, counts, ring, order, sums, bins)
    return head(order[ring[HEAD]], each, counts)
