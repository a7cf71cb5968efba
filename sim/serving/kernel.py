"""The turns of micro-batches at the stages of a pipeline, compiled: it adds and compares numbers, and knows no physics.

Micro-batches come back in the order in which they entered, for stages serve first come first served: a ring of them is enough.
Times are counted from the last entry's clock, and what clocks round away (`lost`) is carried on.

While a prompt waits, each micro-batch that is back takes a piece of it that fills its step up to the budget; the last piece is
left to the caller, who has to tell of it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from sim.results.histogram import BINS_PER_DECADE
from sim.serving.numba_cache import compiled

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# Places in the arrays.  Stages: when each is free, how long it was busy, its time in the step at hand, its layers of each kind.
FREE, BUSY, WORK, LAYERS = 0, 1, 2, 3
BODY, WAY = 0, 1  # of a number of tokens: seconds at each stage, and on the way to it
FULL = 0  # the row of those that fill the budget
# A micro-batch: when it is back, when it left, what clocks lost; then, for each kind of attention, seconds and growth.
BACK, LEAVE, LOST, SAMPLING, SECONDS = 0, 1, 2, 3, 4
# The same in whole numbers; beside it, as columns of their own, the ring's order and the list of those that are gone.
DONE, DUE, DECODES, SILENT, ROW, ORDER, GONE = 0, 1, 2, 3, 4, 5, 6
# The ring, and the prompt that waits: tokens left of it (-1: the caller is to be asked whatever is left), and tokens done; steps of
# nothing but a piece of it; ranks of attention data parallelism.
HEAD, LENGTH, GONES, LEFT, OLD, BUDGET, STEPS_WITHOUT_SAMPLING, RANKS, FIRST_BIN = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
)
ATTENDED, CACHED = 0, 1  # by the pieces of prompts, for each kind of attention: sums
CLOCK, RETURN, PIECE, COUNT, TOTAL, SQUARES = 0, 1, 2, 3, 4, 5
# A micro-batch's step under way, of replicas that may fail: the piece of a prompt in it, the prompt's tokens before that piece, the
# gap before the step's tokens and its bin; then, for each stage, when the step leaves and how long the stage works on it.
TAKEN, BEFORE, GAP, PLACE = 0, 1, 2, 3
LOWEST_BIN = -12 * BINS_PER_DECADE  # the first bin: no gap is shorter than 1e-12 s
BINS = 24 * BINS_PER_DECADE


@compiled
def piece_seconds(line, read, old, piece):
    """Seconds of one layer's attention for a piece of a prompt, from the two lines of which the higher counts, and the window; what
    it attends to and reads is added up."""
    window = line[6]
    free = min(float(piece), max(0.0, window - old))
    attended = free * old + free * (free + 1) / 2 + (piece - free) * window
    cached = min(float(old + piece), window + piece)
    read[ATTENDED] += attended
    read[CACHED] += cached
    return max(
        line[0] + line[1] * attended + line[2] * cached,
        line[3] + line[4] * attended + line[5] * cached,
    )


@compiled
def enter(
    slot,
    now,
    clock_error,
    piece,
    stages,
    rows,
    made,
    lines,
    read,
    batches,
    counts,
    ring,
    sums,
    tracks,
):
    """A step of one micro-batch from the queue of the first stage to its return, with a piece of the prompt that waits.

    start[s] = max(leave[s-1] + way[s], free[s]) and leave[s] = start[s] + work[s]: leave is the sum of all ways and works up to
    there, later by the most that a stage on the way was not free in time.
    """
    n, kinds = stages.shape[1], len(stages) - LAYERS
    free, busy, work = stages[FREE], stages[BUSY], stages[WORK]
    passed = now - sums[CLOCK] + clock_error
    sums[CLOCK] = now
    done, decodes = counts[slot, DONE], counts[slot, DECODES]
    row = FULL if piece else counts[slot, ROW]
    made[row] += 1
    body, way = rows[row, BODY], rows[row, WAY]
    for s in range(n):
        work[s] = body[s]
    work[n - 1] += batches[slot, SAMPLING]
    for kind in range(kinds):
        seconds = batches[slot, SECONDS + kind] + done * batches[slot, SECONDS + kinds + kind]
        if piece:
            seconds += piece_seconds(lines[piece, kind], read[kind], ring[OLD], piece)
        for s in range(n):
            work[s] += stages[LAYERS + kind, s] * seconds
    kept = len(tracks) > 0
    if kept:
        tracks[slot, TAKEN], tracks[slot, BEFORE] = piece, ring[OLD]
    if piece:
        if (
            decodes % ring[RANKS] == 0
        ):  # else a rank with fewer decodes takes the piece, in the others' time
            work[n - 1] += sums[PIECE]
        ring[OLD] += piece
        ring[LEFT] -= piece
    for s in range(n):
        busy[s] += work[s]
    total, late = 0.0, 0.0
    for s in range(n):
        late = max(late, free[s] - passed - (total + way[s]))
        total += way[s] + work[s]
        free[s] = total + late + clock_error
        if kept:
            tracks[slot, PLACE + 1 + s], tracks[slot, PLACE + 1 + n + s] = now + free[s], work[s]
    leave = total + late
    wait = clock_error + leave + sums[RETURN]
    back = now + wait
    batches[slot, BACK], batches[slot, LEAVE], batches[slot, LOST] = (
        back,
        now + (clock_error + leave),
        wait - (back - now),
    )
    if decodes:
        gap = leave + sums[RETURN]
        place = math.floor(math.log10(gap) * BINS_PER_DECADE) - LOWEST_BIN
        place = min(max(place, 0), BINS - 1)
        ring[FIRST_BIN + place] += decodes
        sums[COUNT] += decodes
        sums[TOTAL] += decodes * gap
        sums[SQUARES] += decodes * gap * gap
        if kept:
            tracks[slot, GAP], tracks[slot, PLACE] = gap, place
    if decodes or not piece:
        counts[slot, DONE] = done + 1
    else:
        ring[STEPS_WITHOUT_SAMPLING] += 1
    counts[(ring[HEAD] + ring[LENGTH]) % len(counts), ORDER] = slot
    ring[LENGTH] += 1


@compiled
def join(
    slot,
    now,
    clock_error,
    numbers,
    sampling,
    seconds,
    growth,
    stages,
    rows,
    made,
    lines,
    read,
    batches,
    counts,
    ring,
    sums,
    tracks,
):
    """A micro-batch enters with a new passage: its `numbers` (steps, decodes, silent, row), and for each kind of attention seconds
    and what further steps add to them."""
    kinds = len(seconds)
    batches[slot, SAMPLING] = sampling
    for kind in range(kinds):
        batches[slot, SECONDS + kind], batches[slot, SECONDS + kinds + kind] = (
            seconds[kind],
            growth[kind],
        )
    counts[slot, DONE] = 0
    counts[slot, DUE], counts[slot, DECODES], counts[slot, SILENT], counts[slot, ROW] = numbers
    enter(
        slot,
        now,
        clock_error,
        0,
        stages,
        rows,
        made,
        lines,
        read,
        batches,
        counts,
        ring,
        sums,
        tracks,
    )


@compiled
def assign_prefill_chunks(
    now, slots, stages, rows, made, lines, read, batches, counts, ring, sums, tracks
):
    """Micro-batches that have nothing else to do enter one behind the other, each with a piece of the prompt that waits."""
    for slot in slots:
        for column in range(SAMPLING, batches.shape[1]):
            batches[slot, column] = 0.0
        counts[slot, DONE] = counts[slot, DUE] = counts[slot, DECODES] = 0
        counts[slot, SILENT] = 1
        enter(
            slot,
            now,
            0.0,
            ring[BUDGET],
            stages,
            rows,
            made,
            lines,
            read,
            batches,
            counts,
            ring,
            sums,
            tracks,
        )


@compiled
def head(batches, counts, ring):
    """Who is back first: when, who, after how many steps and whether these were all; when it left, and what the clock lost; and
    how much of the prompt is done."""
    slot = counts[ring[HEAD], ORDER]
    done, each = counts[slot, DONE], batches[slot]
    return (
        each[BACK],
        slot,
        done,
        done == counts[slot, DUE],
        each[LEAVE],
        each[LOST],
        ring[OLD],
        ring[LENGTH],
    )


@compiled
def advance(now, until, stages, rows, made, lines, read, batches, counts, ring, sums, tracks):
    """Micro-batches that are back before `until` (or now) enter again while they have steps left or there are pieces of the prompt
    for them, and are gone where there is nothing to say of them.  Gives the head of the ring, of which that is not true."""
    while ring[LENGTH]:
        slot = counts[ring[HEAD], ORDER]
        back, last, left = batches[slot, BACK], counts[slot, DONE] == counts[slot, DUE], ring[LEFT]
        piece = max(0, ring[BUDGET] - counts[slot, DECODES]) if left else 0
        if (last and not counts[slot, SILENT]) or left < 0 or (piece and left <= piece):
            break
        if back >= until and (back > now or (last and not piece)):
            break
        ring[HEAD] = (ring[HEAD] + 1) % len(counts)
        ring[LENGTH] -= 1
        if last and not piece:
            counts[ring[GONES], GONE] = slot
            ring[GONES] += 1
            continue
        if last:  # it had nothing but a piece of a prompt, and gets another one
            for column in range(SAMPLING, batches.shape[1]):
                batches[slot, column] = 0.0
            counts[slot, DONE] = counts[slot, DUE] = 0
        enter(
            slot,
            back,
            batches[slot, LOST],
            piece,
            stages,
            rows,
            made,
            lines,
            read,
            batches,
            counts,
            ring,
            sums,
            tracks,
        )
    return head(batches, counts, ring)
