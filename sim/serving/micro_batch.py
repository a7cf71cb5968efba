"""Micro-batches: sequences that decode together, kept as sums."""

import heapq
from dataclasses import dataclass, field

from sim.cost.energy import Tally
from sim.cost.work import Work
from sim.results.histogram import Gaps
from sim.serving.batch_wait import BatchWait
from sim.serving.executors.executor import BatchStep
from sim.serving.prompt_chunks import attended_positions, steps_to_fill
from sim.serving.request import Request
from sim.serving.step_draws import kv_per_step
from sim.units import Seconds


@dataclass(eq=False, slots=True)
class MicroBatch(BatchStep):
    """Sequences that step together, and their batch step.

    Sequences are aggregated, not iterated: `finish_steps` is a heap of (finish step, id, request),
    and all else is sums. So booking a step takes equally long for any number of sequences.
    With speculation, each sequence grows by its mean tokens of a step (`Request.rate`).

    window: the attention window of the layers that have one; None without such layers.
    width: tokens of each sequence in a step.
    running: sequences. context: positions that their next tokens attend to, summed.
    taking: with speculation, the KV cache that their next step takes, summed.
    added: what each step adds to `context`. step: steps with decodes so far.
    joined_steps: the steps at which its sequences joined, summed.
    windowed: `context` as layers with a window see it. growing: what each step adds to it.
    window_full_steps: a heap of the steps at which sequences fill the window, with their rate,
        and the positions by which the last step exceeds the window.
    begun: whether it has decoded since it was last without sequences.
    skipped_since: (sequences that were left out of steps, when their last tokens came [s]).
    kv_steps: steps for which KV was taken when the batch step was sent. It may make fewer.
    preempted: whether sequences were preempted for its last step.
    held_since: `step` since which prompts wait for others; None if they do not.
    received: `step` after the last prompts, at which the scheduler saw new requests.
    """

    window: int | None = None
    width: int = 1
    running: int = 0
    context: float = 0
    taking: float = 0
    added: float = 0
    step: int = 0
    joined_steps: int = 0
    finish_steps: list[tuple[int, int, Request]] = field(default_factory=list)
    windowed: float = 0
    growing: float = 0
    window_full_steps: list[tuple[int, float, float]] = field(default_factory=list)
    begun: bool = False
    skipped_since: list[tuple[int, Seconds]] = field(default_factory=list)
    kv_steps: int = 1
    preempted: bool = False
    held_since: int | None = None
    received: int = 0

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
        self.added += request.rate
        self.joined_steps += self.step
        if self.width > 1:
            self.taking += kv_per_step(request.rate)
        if self.window:
            self._join_window(self.window, request)
        heapq.heappush(self.finish_steps, (self.step + request.steps, request.id, request))

    @property
    def kv_needed(self) -> float:
        """The tokens of KV cache that the next step takes."""
        return self.running if self.width == 1 else self.taking

    def steps_until_change(self) -> int:
        """Return the steps until a sequence ends or fills the window."""
        steps = self.finish_steps[0][0] - self.step
        if self.window_full_steps:
            steps = min(steps, self.window_full_steps[0][0] - self.step)
        return steps

    def decode_work(self) -> Work:
        """Return the work of a step in which each sequence gets its next tokens."""
        return Work(
            self.running,
            self.context,
            logits=self.running * self.width,
            windowed_context=self.windowed,
            growing=self.growing,
            width=self.width,
            added=self.added,
        )

    def advance(self, tally: Tally) -> list[Request]:
        """Book the steps that its batch step made, and return the requests that finish.

        Their sequences are removed.
        """
        self.step += self.steps
        if self.width > 1:
            tally.decode_steps += self.steps
        self.context += self.added * self.steps
        if self.window:
            self.windowed += self.growing * self.steps
            while self.window_full_steps and self.window_full_steps[0][0] <= self.step:
                _, rate, excess = heapq.heappop(self.window_full_steps)
                self.growing -= rate
                self.windowed -= excess
        finished: list[Request] = []
        while self.finish_steps and self.finish_steps[0][0] <= self.step:
            last, _, request = heapq.heappop(self.finish_steps)
            self._leave(last, request, request.tokens)
            finished.append(request)
        return finished

    def remove(self, finish: tuple[int, int, Request]) -> int:
        """Remove a sequence before its end, and return the steps in which it decoded.

        The request then has the time of its last token, from which the next gap is counted.
        """
        last, _, request = finish
        self.finish_steps.remove(finish)
        heapq.heapify(self.finish_steps)
        made = self.steps_made(last, request)
        self._leave(last, request, request.prompt + 1 + request.rate * made)
        request.answered = self._unskip(request, made) if self.skipped_since else self.last
        return made

    def _leave(self, last: int, request: Request, positions: float) -> None:
        """Subtract a sequence from the sums over sequences.

        last: the step with which it would finish. positions: its part of `context`.
        """
        joined = last - request.steps
        self.running -= 1
        self.context -= positions
        self.added -= request.rate
        self.joined_steps -= joined
        if self.width > 1:
            self.taking -= kv_per_step(request.rate)
        if self.window:
            self._leave_window(self.window, joined, request)
        if not self.running:
            # Sums of fractions would keep a rounding error for all later sequences.
            self.context = self.added = self.windowed = self.growing = 0

    def steps_made(self, finish_step: int, request: Request) -> int:
        """Return the steps in which a sequence has decoded."""
        return request.steps - (finish_step - self.step)

    @property
    def decoded_steps(self) -> int:
        """The steps that its sequences have decoded so far, summed."""
        return self.running * self.step - self.joined_steps

    def cancelled(self) -> list[tuple[int, int, Request]]:
        """Return the entries of `finish_steps` whose requests are cancelled."""
        return [finish for finish in self.finish_steps if finish[2].cancelled]

    def add_decoded(self, tally: Tally, request: Request, steps: float) -> None:
        """Add the decodes of a sequence to a tally.

        steps: in which it decoded; a fraction comes from an interrupted step.
        """
        whole, window, rate = int(steps), self.window, request.rate
        tally.logits += steps
        if self.width > 1:
            tally.decodes += steps
        tally.context += attended_positions(request.prompt, whole, None, rate)
        if window:
            tally.windowed_context += attended_positions(request.prompt, whole, window, rate)
        if part := steps - whole:
            context = request.prompt + rate * whole + 1
            tally.context += part * context
            tally.windowed_context += part * min(context, window or context)

    def holds(self, wait: BatchWait, waiting: int, budget: int) -> bool:
        """Return whether prompts with `waiting` tokens wait for others, and note since when.

        Prompts that have waited for long enough may find no place. Then they wait again, from the
        next step on.
        """
        passed = 0 if self.held_since is None else max(0, self.step - self.held_since)
        tokens = waiting + self.running
        if not (waiting and self.running and wait.holds(tokens, budget, 0)):
            self.held_since = None
            return False
        held = wait.holds(tokens, budget, passed)
        self.held_since = self.step - passed if held else self.step + 1
        return held

    def steps_unseen(self, every: int) -> int:
        """Return the steps until the scheduler sees new requests; 0: now.

        It sees them after each `every` steps with decodes, after prompts, and while none decodes.
        Source: SGLang, scheduler_recv_interval and scheduler_recv_skipper.py.
        """
        return (self.received - self.step) % every if self.running else 0

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

    def _unskip(self, request: Request, steps: int) -> Seconds:
        """Remove a sequence from those left out; return when its last token came [s].

        steps: in which it decoded.
        """
        answered = self.skipped_since[0][1] if steps else request.joined
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
            self.growing += request.rate
            if request.tokens > window:
                heapq.heappush(self.window_full_steps, self._filling(window, self.step, request))

    def _leave_window(self, window: int, joined: int, request: Request) -> None:
        """Remove a sequence from the windowed sums. joined: the step at which it joined."""
        filling = self._filling(window, joined, request)
        if request.tokens > window and filling[0] <= self.step:
            self.windowed -= window
            return
        self.windowed -= request.prompt + 1 + request.rate * (self.step - joined)
        self.growing -= request.rate
        if request.tokens > window:
            self.window_full_steps.remove(filling)
            heapq.heapify(self.window_full_steps)

    def _filling(self, window: int, joined: int, request: Request) -> tuple[int, float, float]:
        """Return the entry of `window_full_steps` of a sequence that joined at a step."""
        steps, rate = steps_to_fill(request.prompt, window, request.rate), request.rate
        return joined + steps, rate, request.prompt + 1 + rate * steps - window
