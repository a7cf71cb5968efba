"""The steps of micro-batches through the stages of a pipeline, compiled by Numba.

The kernel adds and compares numbers and knows no physics. Stages serve first come, first served.
So micro-batches return in the order in which they entered, and a ring buffer of slots is enough.
Times are counted from the clock of the last entry. The rounding error of the clock (`clock_error`)
is carried forward.

All state is in arrays, because Numba compiles loops over arrays. The constants below name their
rows, columns and places.

While a prompt waits, each micro-batch that returns takes a chunk of it that fills the token budget.
The last chunk is left to the caller, because a token follows it.
"""

import math
from typing import Any, NamedTuple

from sim.results.histogram import BINS_PER_DECADE
from sim.serving.numba_cache import compiled, inlined

# Rows of `stages`, float[row, stage]: when a stage is free [s], and for a step that waits nowhere,
# the time from its entry to its start and to its end there [s]. Then two rows for each kind of
# attention: the layers before the stage, and those up to its end.
FREE, START, END, LAYERS = 0, 1, 2, 3
# `rows`, float[row, 2, stage], s: for a number of tokens, these times to the start and to the end
# without attention and sampling. The first row is of steps that fill the budget.
TO_START, TO_END = 0, 1
FULL = 0
# Columns of `made`, int[row, column]: the steps made of a row. With link errors or drawn experts,
# then how many may be made before one needs a decision. With drawn experts, then the rows that
# hold the bodies of the coming steps: a ring buffer, in which the place of a step is its number.
MADE, STOP, DRAWN = 0, 1, 2
# Columns of `batches`, float[slot, column], s: when a micro-batch returns, when it left the last
# stage, its clock error, and the sampling time. Then for each kind of attention the time of a step,
# and after these what each further step adds.
BACK, LEAVE, CLOCK_ERROR, SAMPLING, SECONDS = 0, 1, 2, 3, 4
# Columns of `counts`, int[slot, column]: the steps that a micro-batch has made, the steps to make,
# the sequences whose gaps are counted, whether it has no output, and its row of `rows`.
DONE, DUE, DECODES, NO_OUTPUT, ROW = 0, 1, 2, 3, 4
# Two more columns of `counts` are lists of slots: in the order of their return (a ring buffer), and
# those that returned without an event.
ORDER, SILENT_SLOTS = 5, 6
# And one column is the KV cache that each further step takes, in the unit of `ROOM`.
KV_GROWTH = 7
# Places of `integers`: the head and length of the ring `ORDER`, and the length of `SILENT_SLOTS`.
HEAD, LENGTH, SILENT_COUNT = 0, 1, 2
# The tokens left of the waiting prompt (-1: the next return needs a decision in any case), and its
# computed tokens.
PROMPT_LEFT, PROMPT_DONE = 3, 4
# The token budget, and steps of nothing but a chunk.
BUDGET, STEPS_WITHOUT_SAMPLING = 5, 6
# The KV cache that further decodes may take, in tokens or in parts of a token. The tokens of a
# sequence in a step, and the histogram of gaps.
ROOM, WIDTH, FIRST_BIN = 7, 8, 9
# Columns of `read`, for each kind of attention. Sums over chunks of prompts: positions attended and
# read, tokens, and the number of chunks. Then the sum of one layer's times in all steps [s].
ATTENDED, CACHED, TOKENS, CHUNKS, WORKED = 0, 1, 2, 3, 4
# Places of `floats`: the clock of the last entry, the time from the last stage to the first, the
# overhead of a sequence, and the sum of all sampling times [s]. Then the sums of the histogram.
CLOCK, WAY_BACK, SEQUENCE_OVERHEAD, SAMPLED, COUNT, TOTAL, SQUARES = 0, 1, 2, 3, 4, 5, 6
# Columns of `tracks`, kept for replicas that can fail, of a slot's step under way: the tokens of
# its chunk, the prompt's tokens before the chunk, the gap before the step's tokens, and its bin.
CHUNK_TOKENS, TOKENS_BEFORE, GAP, GAP_BIN = 0, 1, 2, 3
# Then for each stage when the step leaves, and after these its time there.
STAGE_TIMES = 4
# No gap is shorter than 1e-12 s.
LOWEST_BIN = -12 * BINS_PER_DECADE
BINS = 24 * BINS_PER_DECADE


class Arrays(NamedTuple):
    """The arrays of a pipeline. The comments above describe each.

    lines: float[tokens, kind, 7], by tokens of a chunk, see `chunk_seconds`.
    """

    stages: Any
    rows: Any
    made: Any
    lines: Any
    read: Any
    batches: Any
    counts: Any
    integers: Any
    floats: Any
    tracks: Any


@inlined
def chunk_seconds(line, read, old, chunk):
    """Return the attention time of one layer for a chunk of a prompt, and add up what it reads.

    line: for both sides of the roofline the fixed time, the time for each position attended, and
    for each position read. Then the window. The longer side counts.
    old: computed tokens of the prompt.
    """
    window = line[6]
    free = min(float(chunk), max(0.0, window - old))
    attended = free * old + free * (free + 1) / 2 + (chunk - free) * window
    cached = min(float(old + chunk), window + chunk)
    read[ATTENDED] += attended
    read[CACHED] += cached
    read[TOKENS] += chunk
    read[CHUNKS] += 1
    return max(
        line[0] + line[1] * attended + line[2] * cached,
        line[3] + line[4] * attended + line[5] * cached,
    )


@inlined
def body_row(row, made):
    """Return the row with the body of the next step of a row: its own, or that of drawn experts."""
    drawn = made.shape[1] - DRAWN
    if drawn > 0:
        return made[row, DRAWN + made[row, MADE] % drawn]
    return row


@inlined
def unloaded_times(slot, row, chunk, arrays):
    """Write when a step that waits nowhere starts and ends at each stage, without its sampling.

    row: of its body.
    """
    stages, rows, read, batches = arrays.stages, arrays.rows, arrays.read, arrays.batches
    n, kinds = stages.shape[1], len(read)
    start, end = stages[START], stages[END]
    for s in range(n):
        start[s] = rows[row, TO_START, s]
        end[s] = rows[row, TO_END, s]
    done = arrays.counts[slot, DONE]
    for kind in range(kinds):
        seconds = batches[slot, SECONDS + kind] + done * batches[slot, SECONDS + kinds + kind]
        if chunk:
            line, old = arrays.lines[chunk, kind], arrays.integers[PROMPT_DONE]
            seconds += chunk_seconds(line, read[kind], old, chunk)
        read[kind, WORKED] += seconds
        before, through = stages[LAYERS + 2 * kind], stages[LAYERS + 2 * kind + 1]
        for s in range(n):
            start[s] += before[s] * seconds
            end[s] += through[s] * seconds


@inlined
def pass_stages(slot, now, passed, clock_error, stages, tracks):
    """Return the time from a step's entry to the end of its last stage.

    The step starts at a stage when it has reached the stage and the stage is free. Its delay is
    the largest so far: of `free` beyond the start of a step that waits nowhere.
    """
    n = stages.shape[1]
    free, start, end = stages[FREE], stages[START], stages[END]
    kept = len(tracks) > 0
    late = 0.0
    for s in range(n):
        late = max(late, free[s] - passed - start[s])
        free[s] = end[s] + late + clock_error
        if kept:
            tracks[slot, STAGE_TIMES + s], tracks[slot, STAGE_TIMES + n + s] = (
                now + free[s],
                end[s] - start[s],
            )
    return end[n - 1] + late


@inlined
def count_gap(slot, gap, decodes, integers, floats, tracks):
    """Add the gap before the tokens of a step to the histogram."""
    place = math.floor(math.log10(gap) * BINS_PER_DECADE) - LOWEST_BIN
    place = min(max(place, 0), BINS - 1)
    integers[FIRST_BIN + place] += decodes
    floats[COUNT] += decodes
    floats[TOTAL] += decodes * gap
    floats[SQUARES] += decodes * gap * gap
    if len(tracks) > 0:
        tracks[slot, GAP], tracks[slot, GAP_BIN] = gap, place


@inlined
def enter(slot, now, clock_error, chunk, arrays):
    """Take a step of one micro-batch from the queue of the first stage to its return.

    chunk: tokens of the waiting prompt that are computed with it.
    """
    stages, made, batches, counts = arrays.stages, arrays.made, arrays.batches, arrays.counts
    integers, floats, tracks = arrays.integers, arrays.floats, arrays.tracks
    passed = now - floats[CLOCK] + clock_error
    floats[CLOCK] = now
    decodes, row = counts[slot, DECODES], FULL if chunk else counts[slot, ROW]
    body = body_row(row, made)
    unloaded_times(slot, body, chunk, arrays)
    made[row, MADE] += 1
    if body != row:
        made[body, MADE] += 1
    if len(tracks) > 0:
        tracks[slot, CHUNK_TOKENS], tracks[slot, TOKENS_BEFORE] = chunk, integers[PROMPT_DONE]
    sampling = batches[slot, SAMPLING]
    if chunk:
        sampling += floats[SEQUENCE_OVERHEAD]
        integers[PROMPT_DONE] += chunk
        integers[PROMPT_LEFT] -= chunk
    stages[END, stages.shape[1] - 1] += sampling
    floats[SAMPLED] += sampling
    leave = pass_stages(slot, now, passed, clock_error, stages, tracks)
    wait = clock_error + leave + floats[WAY_BACK]
    back = now + wait
    batches[slot, BACK], batches[slot, LEAVE] = back, now + (clock_error + leave)
    batches[slot, CLOCK_ERROR] = wait - (back - now)
    if decodes:
        count_gap(slot, leave + floats[WAY_BACK], decodes, integers, floats, tracks)
    if decodes or not chunk:
        counts[slot, DONE] += 1
    else:
        integers[STEPS_WITHOUT_SAMPLING] += 1
    counts[(integers[HEAD] + integers[LENGTH]) % len(counts), ORDER] = slot
    integers[LENGTH] += 1


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
    integers,
    floats,
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
    counts[slot, DUE], counts[slot, DECODES], counts[slot, NO_OUTPUT], counts[slot, ROW] = numbers
    arrays = Arrays(stages, rows, made, lines, read, batches, counts, integers, floats, tracks)
    enter(slot, now, clock_error, 0, arrays)


@compiled
def empty(slot, batches, counts):
    """Leave a micro-batch nothing but a chunk of a prompt."""
    for column in range(SAMPLING, batches.shape[1]):
        batches[slot, column] = 0.0
    counts[slot, DONE] = counts[slot, DUE] = 0


@compiled
def assign_prefill_chunks(
    now, slots, stages, rows, made, lines, read, batches, counts, integers, floats, tracks
):
    """Add idle micro-batches one after the other, each with a full chunk of the waiting prompt."""
    arrays = Arrays(stages, rows, made, lines, read, batches, counts, integers, floats, tracks)
    for slot in slots:
        empty(slot, batches, counts)
        counts[slot, DECODES] = 0
        counts[slot, NO_OUTPUT] = 1
        enter(slot, now, 0.0, integers[BUDGET], arrays)


@compiled
def head(batches, counts, integers):
    """Return the micro-batch that returns first, as the fields of `kernel_state.Head`."""
    slot = counts[integers[HEAD], ORDER]
    done, batch = counts[slot, DONE], batches[slot]
    return (
        batch[BACK],
        slot,
        done,
        done == counts[slot, DUE],
        batch[LEAVE],
        batch[CLOCK_ERROR],
        integers[PROMPT_DONE],
        integers[LENGTH],
    )


@inlined
def needs_decision(slot, chunk, made, counts, integers):
    """Return whether the caller has to decide about a micro-batch that returns.

    chunk: tokens of the waiting prompt that fill its budget.
    """
    last = counts[slot, DONE] == counts[slot, DUE]
    if last:
        if not counts[slot, NO_OUTPUT]:
            return True
    elif counts[slot, KV_GROWTH] > integers[ROOM]:
        return True
    if made.shape[1] > STOP and (chunk or not last):
        row = FULL if chunk else counts[slot, ROW]
        if made[row, MADE] == made[row, STOP]:
            return True
    left = integers[PROMPT_LEFT]
    return left < 0 or (chunk > 0 and left <= chunk)


@compiled
def advance(now, until, stages, rows, made, lines, read, batches, counts, integers, floats, tracks):
    """Make all steps that begin before `until`, or now, and need no decision of the caller.

    A micro-batch that returns enters again while it has steps left, or takes a chunk of the waiting
    prompt. A micro-batch without output and without steps is listed in `SILENT_SLOTS`. Return the
    head of the ring, which needs a decision or returns later.
    """
    arrays = Arrays(stages, rows, made, lines, read, batches, counts, integers, floats, tracks)
    while integers[LENGTH]:
        slot = counts[integers[HEAD], ORDER]
        back, last = batches[slot, BACK], counts[slot, DONE] == counts[slot, DUE]
        used = counts[slot, DECODES] * integers[WIDTH]
        chunk = max(0, integers[BUDGET] - used) if integers[PROMPT_LEFT] else 0
        if needs_decision(slot, chunk, made, counts, integers):
            break
        if back >= until and (back > now or (last and not chunk)):
            break
        integers[HEAD] = (integers[HEAD] + 1) % len(counts)
        integers[LENGTH] -= 1
        if last and not chunk:
            counts[integers[SILENT_COUNT], SILENT_SLOTS] = slot
            integers[SILENT_COUNT] += 1
            continue
        if last:
            empty(slot, batches, counts)
        else:
            integers[ROOM] -= counts[slot, KV_GROWTH]
        enter(slot, back, batches[slot, CLOCK_ERROR], chunk, arrays)
    return head(batches, counts, integers)
