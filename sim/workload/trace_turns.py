"""Turns of recorded conversations: which request follows which answer, and after what pause.

>>> turns_before([7, 9, 8], [-1, 7, -1], [0.0, 3.5, 4.0]).tolist()
[-1, 0, -1]
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.workload.requests import RequestBatch


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTurns:
    """The turns of a trace, by request.

    before: int[request], the number of the turn before it; -1 without one.
    pause: float[request], after that turn's answer, in the unit of the trace; nan: not recorded.
    added: whether prompts have only the new text of a turn, without the conversation before it.
    timed: whether all requests have a time of their own.
    alone: later turns whose predecessor the file lacks, or which got no answer.
    """

    before: NDArray[np.int64]
    pause: NDArray[np.float64]
    added: bool = False
    timed: bool = True
    alone: int = 0

    def part(self, places: NDArray[np.int64], second: float = 1.0) -> "RecordedTurns":
        """Return the turns at these places, in this order.

        second: seconds in the unit of pauses.
        A turn whose predecessor is not among them has none.
        """
        numbers = np.full(len(self.before) + 1, -1)  # the last one is that of -1
        numbers[places] = np.arange(len(places))
        pause = self.pause[places] * second
        return replace(self, before=numbers[self.before[places]], pause=pause)


def turns_before(
    ids: Sequence[Hashable], parents: Sequence[Hashable], times: Sequence[float]
) -> NDArray[np.int64]:
    """Return int[request]: the number of each request's parent; -1 without one.

    If several requests have the parent's id, the parent is the last of them before the request: in
    time, and at equal times in the file. None is no id.
    """
    before = np.full(len(ids), -1)
    latest: dict[Hashable, int] = {}
    for number in np.argsort(times, kind="stable").tolist():
        before[number] = latest.get(parents[number], -1)
        if ids[number] is not None:
            latest[ids[number]] = number
    return before


def whole_prompts(
    prompt: NDArray[np.int64], output: NDArray[np.int64], turns: RecordedTurns
) -> NDArray[np.int64]:
    """Return the prompts of turns, each with all prompts and answers of the turns before it."""
    whole = prompt.copy()
    for number, before in enumerate(turns.before.tolist()):
        if before >= 0:
            whole[number] += whole[before] + output[before]
    return whole


def as_conversations(requests: RequestBatch, turns: RecordedTurns) -> RequestBatch:
    """Return requests of which each turn waits for the answer to the turn before it.

    With a recorded pause, a turn is sent that long after the answer. Otherwise the gap between two
    turns is the recorded one, or longer if the answer comes later.
    Requests are numbered conversation by conversation, as those of `Sessions`.
    """
    before, n = turns.before, len(turns.before)
    if not (before >= 0).any():
        return requests
    first = np.arange(n)
    for number in np.flatnonzero(before >= 0):
        first[number] = first[before[number]]
    order = np.argsort(first, kind="stable")
    turns = turns.part(order)
    before, arrival = turns.before, requests.arrival[order]
    prompt, output = requests.prompt[order], requests.output[order]
    follows = before >= 0
    gap = np.where(follows & np.isnan(turns.pause), arrival - arrival[before], 0.0)
    whole = prompt >= np.where(follows, prompt[before] + output[before], 0)
    chained = len(set(before[follows].tolist())) == follows.sum()
    ids, answered = requests.hash_ids, requests.answered
    return replace(
        requests,
        arrival=np.where(follows, np.nan, arrival),
        prompt=prompt,
        output=output,
        after=before,
        think=np.where(follows, np.nan_to_num(turns.pause), 0.0),
        gap=gap,
        hash_ids=None if turns.added or not ids else [ids[i] for i in order.tolist()],
        sessions=first[order] if chained and whole.all() and (turns.added or not ids) else None,
        answered=tuple(times[order] for times in answered) if answered else None,
    )


def turn_notes(requests: RequestBatch, turns: RecordedTurns) -> list[str]:
    """Return how many requests wait for an answer, and how their prompts are read."""
    if requests.after is None:
        return []
    notes = [f"turns that follow an answer: {int((requests.after >= 0).sum())}"]
    if turns.alone:
        notes.append(f"turns without the answer before them in the file: {turns.alone}")
    if turns.added:
        notes.append("prompts of turns with the conversation before them, and no hash_ids")
    return notes
