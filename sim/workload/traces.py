"""Recorded requests as a workload: a window of a trace, stretched in time, its lengths cut."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from sim.inputs.errors import ScenarioError
from sim.inputs.fields import OfKind
from sim.inputs.files import existing, shorten
from sim.inputs.values import Text
from sim.units import Count, Seconds, Tokens
from sim.workload.arrivals import Gamma, Poisson, Workload
from sim.workload.requests import HASH_BLOCK, RequestBatch
from sim.workload.trace_columns import TimeUnit
from sim.workload.trace_files import read_trace
from sim.workload.trace_turns import (
    RecordedTurns,
    as_conversations,
    turn_notes,
    whole_prompts,
)


def _beside(value: object) -> object:
    """Return a path relative to the folder of the file that names it.

    Raises: ScenarioError if there is no such file.
    """
    if isinstance(value, Text):
        return existing(value.folder / value, f"{value.where}: {value}")
    return Path(value) if isinstance(value, str) else value


PathField = Annotated[
    Path,
    BeforeValidator(_beside),
    WithJsonSchema({"type": "string", "description": "a file's path, relative to this file"}),
]
SYNTHETIC: dict[str, type[Workload]] = {"gamma": Gamma, "poisson": Poisson}


class Trace(Workload):
    """Requests as they were recorded at `path`, or `synthetic` ones in their place without a path.

    The format is recognised by content: CSV of Azure, BurstGPT and Vidur, JSON lines of Mooncake,
    Bailian and AIPerf, and results of vLLM's benchmark and guidellm. The file may be compressed.
    Requests from `start` to before `end` are used. Their times count from `start`.
    """

    load_kind = "rate"
    is_recorded = True
    path: PathField | None = Field(
        default=None, description="File of recorded requests; its format is recognised by content."
    )
    time_unit: TimeUnit | None = Field(
        default=None,
        description="Unit of the file's times, if they are numbers; default: the format's, or that "
        "of times since 1970.",
    )
    conversations: bool = Field(
        default=True,
        description="Whether a turn of a recorded conversation waits for the answer before it; "
        "false: recorded times.",
    )
    hash_block: Tokens | None = Field(
        default=None,
        description="Tokens of a block of `hash_ids` [token]; default: the format's, 512 of "
        "Mooncake and 16 of Bailian.",
    )
    synthetic: Annotated[Workload, OfKind(SYNTHETIC, Workload)] | None = Field(
        default=None, description="Workload that is used without a `path`."
    )
    time_scale: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = Field(
        default=1.0,
        description="Factor on times of arrivals; 0.5 doubles the load. Pauses between turns stay.",
    )
    start: Seconds = Field(
        default=0.0, description="Start of the window, from the first request of the trace [s]."
    )
    end: Seconds | None = Field(
        default=None,
        description="End of the window, from the first request of the trace [s]; default: the end "
        "of the trace.",
    )
    requests: Count | None = Field(
        default=None,
        description="Number of requests used, from the start of the window; default: all.",
    )
    max_prompt: Tokens | None = Field(
        default=None, description="Length to which prompts are cut [token]; default: not cut."
    )
    max_output: Tokens | None = Field(
        default=None, description="Length to which outputs are cut [token]; default: not cut."
    )

    @model_validator(mode="after")
    def _one(self) -> "Trace":
        if self.path is None and self.synthetic is None:
            raise ValueError("got neither path nor synthetic; expected one of them; try a path")
        if self.path is None and (self.time_unit or self.hash_block):
            key = "time_unit" if self.time_unit else "hash_block"
            raise ValueError(f"got {key} without a path; expected a file; try leaving {key} out")
        if self.end is not None and self.end <= self.start:
            got = f"got start {self.start:g} s and end {self.end:g} s; expected a later end"
            raise ValueError(f"{got}; try leaving end out")
        return self

    @cached_property
    def recorded(self) -> RequestBatch | None:
        """The requests of the file in the window; None without a path. The file is read once.

        Raises: ScenarioError if the file is malformed, or the window is empty.
        """
        if self.path is None:
            return None
        columns = read_trace(self.path, self.time_unit, self.hash_block)
        turns = columns.turns
        if turns and not turns.timed and not self.conversations:
            raise ScenarioError(
                f"{shorten(self.path)}:1: conversations: got false, and turns with a delay in place"
                " of a timestamp; expected true; try leaving it out"
            )
        prompt = columns.prompt
        if turns and turns.added:
            prompt = whole_prompts(prompt, columns.output, turns)
        whole = RequestBatch(
            columns.arrival,
            prompt,
            columns.output,
            hash_ids=columns.hash_ids,
            hash_block=columns.hash_block or HASH_BLOCK,
            answered=(columns.arrival, *columns.answered) if columns.answered else None,
        )
        return self._cut(whole, columns.notes, turns if self.conversations else None)

    @property
    def chained(self) -> bool:
        """Whether some requests are turns that wait for an answer."""
        return self.recorded is not None and self.recorded.after is not None

    @property
    def turns_of_load(self) -> float:
        """The mean number of requests in a conversation."""
        if self.recorded is None or self.recorded.after is None:
            return 1.0
        return len(self.recorded.after) / int((self.recorded.after < 0).sum())

    @property
    def mean_prompt(self) -> float:
        """Tokens of a mean prompt; without a file, an upper bound if prompts are cut."""
        return self._mean("prompt", self.max_prompt)

    @property
    def mean_output(self) -> float:
        """Tokens of a mean output; without a file, an upper bound if outputs are cut."""
        return self._mean("output", self.max_output)

    def _mean(self, column: str, most: int | None) -> float:
        """Return the mean of a column; of a synthetic workload the mean before it is cut."""
        if self.recorded:
            return float(getattr(self.recorded, column).mean())
        mean: float = getattr(self.synthetic, f"mean_{column}")
        return min(mean, most or mean)

    def draw(self, seed: int) -> RequestBatch:
        """Return the recorded requests, the same for every seed, or else synthetic ones.

        Raises: ScenarioError if the file is malformed, or the window is empty.
        """
        if self.recorded:
            return self.recorded
        assert self.synthetic
        return self._cut(self.synthetic.draw(seed), [])

    def _cut(
        self, whole: RequestBatch, notes: list[str], turns: RecordedTurns | None = None
    ) -> RequestBatch:
        """Return the requests of the window, with scaled times and cut lengths.

        turns: of the conversations that they make up; None without any.

        Raises: ScenarioError if no request is left.
        """
        begin, to = np.searchsorted(
            whole.arrival, [self.start, np.inf if self.end is None else self.end]
        )
        part = slice(begin, min(to, begin + (self.requests or len(whole.arrival))))
        arrival = whole.arrival[part]
        if not len(arrival):
            source = shorten(self.path) if self.path else "workload"
            raise ScenarioError(
                f"{source}: got no request from start to end; expected some;"
                f" the last one comes after {whole.arrival[-1]:g} s"
            )
        inside = replace(
            whole,
            arrival=arrival - self.start,
            prompt=whole.prompt[part],
            output=whole.output[part],
            hash_ids=whole.hash_ids[part] if whole.hash_ids else None,
            answered=self._answered(whole, part),
        )
        if turns:
            inside = as_conversations(inside, turns.part(np.arange(len(whole.arrival))[part]))
            notes = [*notes, *turn_notes(inside, turns)]
        prompt, output, ids = inside.prompt, inside.output, inside.hash_ids
        for name, column, most in (
            ("prompts", prompt, self.max_prompt),
            ("outputs", output, self.max_output),
        ):
            if most and (longer := int((column > most).sum())):
                notes = [*notes, f"{name} cut to {most} token: {longer}"]
        if self.max_prompt:
            prompt = np.minimum(prompt, self.max_prompt)
            blocks = -(-self.max_prompt // whole.hash_block)
            ids = [prompt_ids[:blocks] for prompt_ids in ids] if ids else None
        output = np.minimum(output, self.max_output) if self.max_output else output
        return replace(
            inside,
            arrival=inside.arrival * self.time_scale,
            prompt=prompt,
            output=output,
            hash_ids=ids,
            note="; ".join(notes),
        )

    def _answered(self, whole: RequestBatch, part: slice) -> tuple[np.ndarray, ...] | None:
        """Return the recorded times of the window; None if times or lengths are changed."""
        if not whole.answered or self.time_scale != 1 or self.max_prompt or self.max_output:
            return None
        return tuple(times[part] - self.start for times in whole.answered)
