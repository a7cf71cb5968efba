"""Micro-batches: sequences that decode together, kept as sums."""

import heapq
from dataclasses import dataclass, field

from sim.cost.energy import Tally
from sim.results.histogram import Gaps
from sim.serving.executors.executor import BatchStep
from sim.serving.policy import Request
from sim.serving.prompt_chunks import attended_positions
from sim.units import Seconds


@dataclass(eq=False, slots=True)
class MicroBatch(BatchStep):
    """Sequences that step together, and their batch step.

    Sequences are aggregated, not iterated: `finish_steps` is a heap of (finish step, id, request),
    and all else is sums. So booking a step takes equally long for any number of sequences.

    window: the attention window of the layers that have one; None without such layers.
    running: sequences. context: positions that their next tokens attend to, summed.
    step: steps with decodes so far.
    windowed: `context` as layers with a window see it. growing: sequences shorter than the window.
    window_full_steps: a heap of the steps at which sequences fill the window.
    begun: whether it has decoded since it was last without sequences.
    skipped_since: (sequences that were left out of steps, when their last tokens came [s]).
    kv_steps: steps for which KV was taken when the batch step was sent. It may make fewer.
    preempted: whether sequences were preempted for its last step.
    """

    window: int | None = None
    running: int = 0
    context: int = 0
    step: int = 0
    finish_steps: list[tuple[int, int, Request]] = field(default_factory=list)
    windowed: int = 0
    growing: int = 0
    window_full_steps: list[int] = field(default_factory=list)
    begun: bool = False
    skipped_since: list[tuple[int, Seconds]] = field(default_factory=list)
    kv_steps: int = 1
    preempted: bool = False

    # Sequences join, decode and leave.

    def join(self, request: Request, leave: Seconds) -> None:
        """Add the sequence of a request whose prompt is computed and whose first token is ready.

        leave: when the step with its last chunk left the last stage [s].
        """
        if self.skipped_since:
            self.skipped_since.append((1, leave))
        request.joined = leave
        self.running += 1
        self.context += request.prompt + 1
        if self.window:
            self._join_window(self.window, request)
        heapq.heappush(self.finish_steps, (self.step + request.output - 1, request.id, request))

    def steps_until_change(self) -> int:
        """Return the steps until a sequence ends or fills the window."""
        steps = self.finish_steps[0][0] - self.step
        if self.window_full_steps:
            steps = min(steps, self.window_full_steps[0] - self.step)
        return steps

    def advance(self) -> None:
        """Book the steps that its batch step made."""
        self.step += self.steps
        self.context += self.running * self.steps
        self.windowed += self.growing * self.steps
        while self.window_full_steps and self.window_full_steps[0] <= self.step:
            heapq.heappop(self.window_full_steps)
            self.growing -= 1

    def pop_finished(self) -> list[Request]:
        """Remove the sequences whose last token is ready, and return their requests."""
        finished = []
        while self.finish_steps and self.finish_steps[0][0] <= self.step:
            request = heapq.heappop(self.finish_steps)[2]
            self.running -= 1
            self.context -= request.tokens
            if self.window:
                self._leave_window(self.window, request.tokens, request)
            finished.append(request)
        return finished

    def remove(self, finish: tuple[int, int, Request]) -> int:
        """Remove a sequence before its end, and return the tokens that it decoded.

        The request then has the time of its last token, from which the next gap is counted.
        """
        last, _, request = finish
        self.finish_steps.remove(finish)
        heapq.heapify(self.finish_steps)
        decoded = self.decoded(last, request)
        context = request.prompt + 1 + decoded
        self.running -= 1
        self.context -= context
        if self.window:
            self._leave_window(self.window, context, request, last - request.output + 1)
        request.answered = self._unskip(request, decoded) if self.skipped_since else self.last
        return decoded

    def decoded(self, finish_step: int, request: Request) -> int:
        """Return the tokens that a sequence has decoded, the first token left out."""
        return request.output - 1 - (finish_step - self.step)

    def cancelled(self) -> list[tuple[int, int, Request]]:
        """Return the entries of `finish_steps` whose requests are cancelled."""
        return [finish for finish in self.finish_steps if finish[2].cancelled]

    def add_decoded(self, tally: Tally, request: Request, decoded: float) -> None:
        """Add the decoded tokens of a sequence to a tally.

        decoded: a fraction comes from an interrupted step.
        """
        whole, window = int(decoded), self.window
        tally.logits += decoded
        tally.context += attended_positions(request.prompt, whole, None)
        if window:
            tally.windowed_context += attended_positions(request.prompt, whole, window)
        if part := decoded - whole:
            context = request.prompt + whole + 1
            tally.context += part * context
            tally.windowed_context += part * min(context, window or context)

    # A step without decodes delays the next tokens of the sequences.

    def skip(self) -> None:
        """Note that the sequences got no token from its batch step."""
        if others := self.running - sum(sequences for sequences, _ in self.skipped_since):
            self.skipped_since.append((others, self.last))

    def count_skipped(self, gaps: Gaps, leave: Seconds) -> None:
        """Count the gaps of sequences that were left out, whose tokens left at `leave` [s]."""
        for sequences, since in self.skipped_since:
            gaps.add(leave - since, sequences)
        self.skipped_since.clear()

    def _unskip(self, request: Request, decoded: int) -> Seconds:
        """Remove a sequence from those left out; return when its last token came [s]."""
        answered = self.skipped_since[0][1] if decoded else request.joined
        times = [since for _, since in self.skipped_since]
        place = times.index(answered)
        sequences, since = self.skipped_since[place]
        self.skipped_since[place : place + 1] = [(sequences - 1, since)] if sequences > 1 else []
        return answered

    # Layers with a window attend to no more positions than the window.

    def _join_window(self, window: int, request: Request) -> None:
        """Add a sequence to the windowed sums. It grows until it ends or fills the window."""
        self.windowed += min(request.prompt + 1, window)
        if request.prompt + 1 < window:
            self.growing += 1
            if request.tokens > window:
                heapq.heappush(self.window_full_steps, self.step + window - request.prompt - 1)

    def _leave_window(
        self, window: int, context: int, request: Request, joined: int | None = None
    ) -> None:
        """Remove a sequence with `context` positions from the windowed sums.

        joined: the step at which it joined, for a sequence that leaves before its end.
        """
        self.windowed -= min(context, window)
        full = context > window or (context == window and request.tokens > window)
        if request.prompt + 1 < window and not full:
            self.growing -= 1
            if joined is not None and request.tokens > window:
                self.window_full_steps.remove(joined + window - request.prompt - 1)
                heapq.heapify(self.window_full_steps)
