"""The steps of micro-batches through the stages of a pipeline, compiled by Numba.

The kernel adds and compares numbers and knows no physics. Stages serve first come, first served, so
micro-batches return in the order in which they entered, and a ring of them is enough. Times are
counted from the clock of the last entry. The rounding error of the clock (`clock_error`) is carried
forward.

While a prompt waits, each micro-batch that returns takes a chunk of it that fills the token budget.
The last chunk is left to the caller, because a token follows it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from sim.results.histogram import BINS_PER_DECADE
from sim.serving.numba_cache import compiled, inlined

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# Rows of `stages`: when each stage is free, its working time, its time in the current step, and its
# layers of each kind of attention.
FREE, BUSY, WORK, LAYERS = 0, 1, 2, 3
# Rows of `rows`, for a number of tokens: the time at each stage, and on the way to it. The first
# row is of steps that fill the budget.
BODY, WAY = 0, 1
FULL = 0
# Columns of `batches`: when a micro-batch returns, when it left, its clock error, the sampling
# time, and for each kind of attention the seconds of a step and what each further step adds.
BACK, LEAVE, CLOCK_ERROR, SAMPLING, SECONDS = 0, 1, 2, 3, 4
# Columns of `counts`: the steps of a micro-batch that are made, those to make, the sequences whose
# gaps are counted, whether it has no output, and its row. Two more columns are lists: the ring's
# order, and the slots that returned without an event.
DONE, DUE, DECODES, SILENT, ROW, ORDER, GONE = 0, 1, 2, 3, 4, 5, 6
# Places of `ring`: its head and length, the number of slots that returned without an event, the
# tokens left of the waiting prompt (-1: the next return needs a decision anyway), its computed
# tokens, the token budget, steps of nothing but a chunk, and ranks of attention data parallelism.
HEAD, LENGTH, GONES, LEFT, OLD, BUDGET, STEPS_WITHOUT_SAMPLING, RANKS = 0, 1, 2, 3, 4, 5, 6, 7
# Then the tokens of KV cache that further decodes may take, and the histogram of gaps.
ROOM, FIRST_BIN = 8, 9
# Columns of `read`, sums over chunks of prompts for each kind of attention.
ATTENDED, CACHED = 0, 1
# Places of `sums`: the clock of the last entry, the way back from the last stage, the overhead of
# a sequence, and the sums of the histogram of gaps.
CLOCK, RETURN, PIECE, COUNT, TOTAL, SQUARES = 0, 1, 2, 3, 4, 5
# Columns of `tracks`, kept for replicas that can fail: of a micro-batch's step under way the tokens
# of its chunk, the prompt's tokens before it, the gap before the step's tokens, and its bin. Then
# for each stage when the step leaves, and its time there.
TAKEN, BEFORE, GAP, PLACE = 0, 1, 2, 3
# No gap is shorter than 1e-12 s.
LOWEST_BIN = -12 * BINS_PER_DECADE
BINS = 24 * BINS_PER_DECADE


@inlined
def piece_seconds(line, read, old, piece):
    """Return the attention time of one layer for a chunk of a prompt, and add up what it reads.

    line: both sides of the roofline as fixed time, time for each position attended and for each
    position read; the higher side counts. Then the window. old: computed tokens of the prompt.
    """
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


@inlined
def stage_times(slot, piece, stages, rows, lines, read, batches, counts, ring):
    """Write the time of a step at each stage, up to the overhead of a chunk, to `stages[WORK]`."""
    n, kinds = stages.shape[1], len(stages) - LAYERS
    work, body = stages[WORK], rows[FULL if piece else counts[slot, ROW], BODY]
    for s in range(n):
        work[s] = body[s]
    work[n - 1] += batches[slot, SAMPLING]
    done = counts[slot, DONE]
    for kind in range(kinds):
        seconds = batches[slot, SECONDS + kind] + done * batches[slot, SECONDS + kinds + kind]
        if piece:
            seconds += piece_seconds(lines[piece, kind], read[kind], ring[OLD], piece)
        for s in range(n):
            work[s] += stages[LAYERS + kind, s] * seconds


@inlined
def pass_stages(slot, now, passed, clock_error, way, stages, tracks):
    """Return the time from a step's entry to the end of its last stage.

    start[s] = max(leave[s-1] + way[s], free[s]) and leave[s] = start[s] + work[s]. So leave is the
    sum of all ways and works up to there, plus the longest wait for a stage that was not free.
    """
    n = stages.shape[1]
    free, busy, work = stages[FREE], stages[BUSY], stages[WORK]
    kept = len(tracks) > 0
    total, late = 0.0, 0.0
    for s in range(n):
        busy[s] += work[s]
        late = max(late, free[s] - passed - (total + way[s]))
        total += way[s] + work[s]
        free[s] = total + late + clock_error
        if kept:
            tracks[slot, PLACE + 1 + s], tracks[slot, PLACE + 1 + n + s] = now + free[s], work[s]
    return total + late


@inlined
def count_gap(slot, gap, decodes, ring, sums, tracks):
    """Add the gap before the tokens of a step to the histogram."""
    place = math.floor(math.log10(gap) * BINS_PER_DECADE) - LOWEST_BIN
    place = min(max(place, 0), BINS - 1)
    ring[FIRST_BIN + place] += decodes
    sums[COUNT] += decodes
    sums[TOTAL] += decodes * gap
    sums[SQUARES] += decodes * gap * gap
    if len(tracks) > 0:
        tracks[slot, GAP], tracks[slot, PLACE] = gap, place


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
    """Take a step of one micro-batch from the queue of the first stage to its return.

    piece: tokens of the waiting prompt that are computed with it.
    """
    passed = now - sums[CLOCK] + clock_error
    sums[CLOCK] = now
    decodes, row = counts[slot, DECODES], FULL if piece else counts[slot, ROW]
    made[row] += 1
    stage_times(slot, piece, stages, rows, lines, read, batches, counts, ring)
    if len(tracks) > 0:
        tracks[slot, TAKEN], tracks[slot, BEFORE] = piece, ring[OLD]
    if piece:
        # Otherwise a rank with fewer decodes takes the chunk while the others sample.
        if decodes % ring[RANKS] == 0:
            stages[WORK, stages.shape[1] - 1] += sums[PIECE]
        ring[OLD] += piece
        ring[LEFT] -= piece
    leave = pass_stages(slot, now, passed, clock_error, rows[row, WAY], stages, tracks)
    wait = clock_error + leave + sums[RETURN]
    back = now + wait
    batches[slot, BACK], batches[slot, LEAVE] = back, now + (clock_error + leave)
    batches[slot, CLOCK_ERROR] = wait - (back - now)
    if decodes:
        count_gap(slot, leave + sums[RETURN], decodes, ring, sums, tracks)
    if decodes or not piece:
        counts[slot, DONE] += 1
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
    """Add a micro-batch with a new batch step.

    numbers: its steps, the sequences whose gaps are counted, whether it has no output, its row.
    seconds, growth: for each kind of attention, a step's time, and what each further step adds.
    """
    kinds = len(seconds)
    batches[slot, SAMPLING] = sampling
    for kind in range(kinds):
        batches[slot, SECONDS + kind] = seconds[kind]
        batches[slot, SECONDS + kinds + kind] = growth[kind]
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
def empty(slot, batches, counts):
    """Make a micro-batch one that has nothing but a chunk of a prompt."""
    for column in range(SAMPLING, batches.shape[1]):
        batches[slot, column] = 0.0
    counts[slot, DONE] = counts[slot, DUE] = 0


@compiled
def assign_prefill_chunks(
    now, slots, stages, rows, made, lines, read, batches, counts, ring, sums, tracks
):
    """Add idle micro-batches one after the other, each with a full chunk of the waiting prompt."""
    for slot in slots:
        empty(slot, batches, counts)
        counts[slot, DECODES] = 0
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
    """Return the micro-batch that returns first, as the fields of `kernel_state.Head`."""
    slot = counts[ring[HEAD], ORDER]
    done, batch = counts[slot, DONE], batches[slot]
    return (
        batch[BACK],
        slot,
        done,
        done == counts[slot, DUE],
        batch[LEAVE],
        batch[CLOCK_ERROR],
        ring[OLD],
        ring[LENGTH],
    )


@inlined
def needs_decision(slot, piece, counts, ring):
    """Return whether a micro-batch that returns is the caller's.

    piece: tokens of the waiting prompt that fill its budget.
    """
    if counts[slot, DONE] == counts[slot, DUE]:
        if not counts[slot, SILENT]:
            return True
    elif counts[slot, DECODES] > ring[ROOM]:
        return True
    left = ring[LEFT]
    return left < 0 or (piece > 0 and left <= piece)


@compiled
def advance(now, until, stages, rows, made, lines, read, batches, counts, ring, sums, tracks):
    """Make all steps that begin before `until`, or now, and need no decision of the caller.

    A micro-batch that returns enters again while it has steps left, or takes a chunk of the waiting
    prompt. One without output and steps is noted as gone. Return the head of the ring, which needs
    a decision or returns later.
    """
    while ring[LENGTH]:
        slot = counts[ring[HEAD], ORDER]
        back, last = batches[slot, BACK], counts[slot, DONE] == counts[slot, DUE]
        piece = max(0, ring[BUDGET] - counts[slot, DECODES]) if ring[LEFT] else 0
        if needs_decision(slot, piece, counts, ring):
            break
        if back >= until and (back > now or (last and not piece)):
            break
        ring[HEAD] = (ring[HEAD] + 1) % len(counts)
        ring[LENGTH] -= 1
        if last and not piece:
            counts[ring[GONES], GONE] = slot
            ring[GONES] += 1
            continue
        if last:
            empty(slot, batches, counts)
        else:
            ring[ROOM] -= counts[slot, DECODES]
        enter(
            slot,
            back,
            batches[slot, CLOCK_ERROR],
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
