"""The text of `sramsim explain`, in 80 columns.

>>> _wrapped("weights read", "  ")
['  weights read']
"""

import textwrap
from collections.abc import Iterator, Mapping

from sim.results.explanation_summary import (
    ExplainedLine,
    ExplainedSystem,
    ExplainedTime,
    ExplanationSummary,
)
from sim.results.labels import format_number, percent_text

LINE_WIDTH = 80
SMALL = 0.005  # shares below are added up
TERM_TITLES = {
    "weights": "reading weights",
    "kv": "reading the KV cache",
    "activations": "reading activations",
    "compute": "computing",
    "collectives": "collectives in a stage",
    "hops": "hops between stages",
    "overhead": "overhead",
}
UNCHANGED = 1e-6  # relative difference of two times that are equal


def explanation_text(summary: ExplanationSummary) -> str:
    """Return the text of all systems."""
    parts = ["\n".join(_system_lines(name, system)) for name, system in summary.systems.items()]
    return "\n\n".join(parts)


def _system_lines(name: str, system: ExplainedSystem) -> Iterator[str]:
    token, first = system.token, system.first_token
    speed = format_number(1000 / token.ms)
    yield from _wrapped(f"{name}: {format_number(token.ms)} ms a token, {speed} token/s of a user")
    yield from _wrapped(
        f"{system.hardware}; {system.plan} (tensor x pipeline x replicas); {system.precision}",
        "  ",
    )
    if system.speed_label:
        yield f"  its speeds are: {system.speed_label}"
    saved = system.saved_tpot_ms
    if saved and abs(saved / token.simulated_ms - 1) > UNCHANGED:
        yield from _wrapped(
            f"The result has TPOT {format_number(saved)} ms: a file, or sramsim, changed since.",
            "  ",
        )
    shown = [line for time in (token, first) for line in time.lines if line.share >= SMALL]
    keys = dict.fromkeys(key for line in shown for key in line.keys if key in system.sources)
    numbers = {key: number for number, key in enumerate(keys, 1)}
    yield ""
    yield f"One output token of a single request, at {system.context:,.0f} tokens of context:"
    yield from _time_lines(token, numbers)
    yield ""
    yield (
        f"The first token, after a prompt of {system.prompt:,} tokens: {format_number(first.ms)} ms"
    )
    yield from _time_lines(first, numbers)
    if abs(first.simulated_ms / first.ms - 1) > 1e-3:
        yield f"  In the simulation: {format_number(first.simulated_ms)} ms"
    yield ""
    rest = 1 - system.fitted_share - system.assumed_share
    yield from _wrapped(
        f"{percent_text(system.fitted_share, 1)} of the token's time comes from fitted numbers, "
        f"{percent_text(system.assumed_share, 1)} from assumed ones, "
        f"{percent_text(rest, 1)} from data sheets and papers."
    )
    if system.effects:
        yield "The token's time changes most with:"
    for effect in system.effects:
        yield f"  {effect.key} {effect.change_pct:+.0f} %: {effect.tpot_pct:+.1f} %"
    yield ""
    yield "Numbers:"
    for key, number in numbers.items():
        source = system.sources[key]
        text = f"[{number}] {key} = {source.value}: {source.source}"
        yield from _wrapped(text, "  ")


def _time_lines(time: ExplainedTime, numbers: Mapping[str, int]) -> Iterator[str]:
    """Yield the time, and its terms with their lines, the longest first."""
    yield f"  {_amount(time.ms)}         in all"
    terms = sorted(time.terms_ms.items(), key=lambda pair: -pair[1])
    for term, ms in terms:
        share = ms / time.ms if time.ms else 0.0
        if not ms:
            continue
        yield f"  {_amount(ms)} {percent_text(share, 1):>7}  {TERM_TITLES[term]}"
        lines = [line for line in time.lines if line.term == term]
        shown = [line for line in lines if line.share >= SMALL]
        for line in shown:
            yield from _line(line, numbers)
        if shown and (rest := sum(line.ms for line in lines if line.share < SMALL)):
            yield f"      {_amount(rest)}  smaller parts"


def _line(line: ExplainedLine, numbers: Mapping[str, int]) -> Iterator[str]:
    notes = ", ".join(map(str, sorted(numbers[key] for key in line.keys if key in numbers)))
    what = f"{line.part}: {line.what} ({line.binds})" if line.part else line.what
    yield f"      {_amount(line.ms)}  {what}"
    yield f"                     = {line.formula}" + (f"  [{notes}]" if notes else "")


def _amount(ms: float) -> str:
    return f"{format_number(ms):>8} ms"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        LINE_WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )
