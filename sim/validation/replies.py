"""Replies of SRAM services, as points: the server-side times of many requests, and the floors of a deployment.

A deployment is a provider, a model and a half-year.  A floor is the 10 % quantile of a metric over
its usable replies: load and waiting only add to the time that the hardware takes.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from sim.catalogue.measurements import errors_at_row, read_csv_table
from sim.validation.points import REPLIES, InexpressibleError, Known, MeasuredPoint, rules, run_by

QUANTILE = 0.1
LEAST_REPLIES = 10  # of a floor: a quantile of fewer is their minimum
LEAST_PROMPT, LEAST_OUTPUT = 100, 50  # tokens, below which fixed times count
NEAR_PACE = 0.03
LAST_PACED = (
    "2025-09"  # the services throttled until then; a later reply is paced only where it is flagged
)
# Flags that exclude a reply from a metric.  Length is judged by the tokens, not by short-*.
EXCLUDED = {
    "beat": {"1ms", "fixture", "not-fitted", "image", "prefill-waits"},
    "ttft": {"1ms", "fixture", "not-fitted", "image", "prefill-waits"},
    "tpot": {"1ms", "fixture", "not-fitted", "decode-loaded"},
}
FLAGS = {"short-output", "short-prompt"}.union(*EXCLUDED.values())
SPECULATIVE = ("0", "yes", "unknown", "")


@dataclass(frozen=True, slots=True)
class Reply:
    """The times of one request [s], and how many tokens they are of; None where the service does not print one."""

    provider: str
    model: str
    date: str  # 2024-05, 2024 or nothing
    new_tokens: int  # of the prompt, without cached ones
    output_tokens: int
    prompt_time: float | None
    completion_time: float | None
    ttft: float | None
    speculative: bool
    flags: frozenset[str]

    @property
    def half_year(self) -> str:
        """2024-H1; the date itself where it has no month."""
        year, _, month = self.date.partition("-")
        return f"{year}-H{1 if int(month) <= 6 else 2}" if month else self.date

    @property
    def paces(self) -> set[int]:
        """The throttles that flags of the reply name [token/s]."""
        return {
            int(flag.removeprefix("paced-")) for flag in self.flags if flag.startswith("paced-")
        }

    def exclusion(self, metric: str) -> str:
        """Return why the reply cannot count for a metric; nothing where it can.

        A flag excludes a reply only from the metric that it concerns.  A short answer has a good prompt
        time, and a short prompt a good time per token.  An image (or what may be one) lengthens the
        prompt and its time, not the time of an output token.
        """
        if flags := sorted(self.flags & EXCLUDED[metric]):
            return flags[0]
        if metric == "tpot":
            short = self.output_tokens < LEAST_OUTPUT
            missing = self.completion_time is None
            return (
                "speculative"
                if self.speculative
                else "short-output"
                if short
                else "no time"
                if missing
                else ""
            )
        short = self.new_tokens < LEAST_PROMPT
        missing = (self.ttft if metric == "ttft" else self.prompt_time) is None
        return "short-prompt" if short else "no time" if missing else ""

    def seconds(self, metric: str) -> float:
        """The time that the reply gives for a metric; NaN where it cannot count.

        `beat`: prompt time per new token.  `tpot`: completion time per output token, because the time
        of the first token is in it.  `ttft`: as printed, by services that print no prompt time.
        """
        if self.exclusion(metric):
            return math.nan
        if metric == "ttft":
            return self.ttft or math.nan
        if metric == "beat":
            return (self.prompt_time or math.nan) / self.new_tokens
        return (self.completion_time or math.nan) / self.output_tokens

    def is_paced(self, paces: Iterable[int]) -> bool:
        """Whether the service throttled the answer: a flag says so, or the speed is near a known pace.

        A throttle that ended cannot pace a later reply, however near its speed is.
        """
        near = any(abs(self.seconds("tpot") * pace - 1) <= NEAR_PACE for pace in paces)
        return bool(self.paces) or (near and self.date[:7] <= LAST_PACED)


def is_replies(header: Iterable[str]) -> bool:
    """Whether a table with these columns is one of replies."""
    return set(REPLIES) <= set(header)


def floors(path: Path) -> list[MeasuredPoint]:
    """Return the deployments of a table of replies, each with its floors.

    Raises: ScenarioError where a cell is malformed.
    """
    groups: dict[tuple[str, str, str], list[Reply]] = {}
    paces: dict[tuple[str, str, str], set[int]] = {}
    for replies, known_paces in by_model(path):
        for reply in replies:
            key = reply.provider, reply.model, reply.half_year
            groups.setdefault(key, []).append(reply)
            paces[key] = known_paces
    return [deployment(replies, paces[key]) for key, replies in sorted(groups.items())]


def decode_floors(path: Path) -> list[MeasuredPoint]:
    """Return for each provider and model the floor of the time of an output token, over all half-years: what engines are fitted to.

    Replies that a throttle held, and those of half-years whose decode no floor counts, are left out; so is a model with fewer
    than 10 others.  Raises: ScenarioError where a cell is malformed.
    """
    found = []
    for replies, paces in by_model(path):
        used = [
            reply
            for reply in replies
            if not reply.exclusion("tpot")
            and not reply.is_paced(paces)
            and not not_scored("tpot", about_of(reply))
        ]
        if len(used) >= LEAST_REPLIES:
            about = about_of(used[0])
            measured = {"tpot": floor(reply.seconds("tpot") for reply in used)}
            output = max(2, round(median(reply.output_tokens for reply in used)))
            name = f"{about['provider']} {about['model']}"
            found.append(
                served_by(
                    MeasuredPoint(
                        name, about, measured, "reply", prompt=output, output=output, group=name
                    )
                )
            )
    return found


def by_model(path: Path) -> list[tuple[list[Reply], set[int]]]:
    """Return the replies of each provider and model, and the paces that any of them names [token/s]."""
    rules()  # a mistake in them is not one of a row
    groups: dict[tuple[str, str], list[Reply]] = {}
    for where, row in read_csv_table(path)[1]:
        with errors_at_row(where):
            reply = read_reply(row)
        groups.setdefault((reply.provider, reply.model), []).append(reply)
    return [
        (replies, set().union(*(reply.paces for reply in replies)))
        for _, replies in sorted(groups.items())
    ]


def read_reply(row: Mapping[str, str]) -> Reply:
    """Return the reply of a row.  Raises: ValueError, which begins with the column."""
    if not re.fullmatch(r"(20[0-9]{2}(-(0[1-9]|1[0-2]))?)?", row["date"]):
        raise ValueError(f"date: got {row['date']!r}; expected YYYY-MM, or YYYY, or nothing")
    if row["speculative"] not in SPECULATIVE:
        raise ValueError(f"speculative: got {row['speculative']!r}; expected 0, yes or unknown")
    flags = frozenset(filter(None, row["flags"].split(";")))
    for flag in sorted(flags - FLAGS):
        if not re.fullmatch("paced-[1-9][0-9]*", flag):
            raise ValueError(f"flags: got {flag!r}; expected paced-N, {', '.join(sorted(FLAGS))}")
    prompt, output, cached = (
        whole(row, f"{key}_tokens") for key in ("prompt", "completion", "cached")
    )
    if cached > prompt:
        raise ValueError(f"cached_tokens: got {cached}; expected at most prompt_tokens, {prompt}")
    rate, acceptance = positive(row, "tokens_per_s_reported"), positive(row, "acceptance_rate")
    completion_time = positive(row, "completion_time_s")
    if completion_time is None and rate:
        completion_time = output / rate
    return Reply(
        provider=row["provider"] or "unknown",
        model=row["model"] or "unknown",
        date=row["date"],
        new_tokens=prompt - cached,
        output_tokens=output,
        prompt_time=positive(row, "prompt_time_s"),
        completion_time=completion_time,
        ttft=positive(row, "ttft_s"),
        speculative=row["speculative"] == "yes" or (acceptance or 0) > 1,
        flags=flags,
    )


def whole(row: Mapping[str, str], key: str) -> int:
    """Return a number of tokens; 0 where the cell is empty.  Raises: ValueError."""
    if not re.fullmatch("[0-9]{0,9}", row[key]):
        raise ValueError(f"{key}: got {row[key]!r}; expected a whole number of tokens")
    return int(row[key] or 0)


def positive(row: Mapping[str, str], key: str) -> float | None:
    """Return a finite number above 0, None where the cell is empty.  Raises: ValueError."""
    if not row[key]:
        return None
    try:
        value = float(row[key])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{key}: got {row[key]!r}; expected a number above 0, or nothing")
    return value


def deployment(replies: list[Reply], paces: Iterable[int]) -> MeasuredPoint:
    """Return the floors of one deployment, and what is known of each before anything is simulated."""
    about = about_of(replies[0])
    name = about["deployment"]
    prefill = "beat" if any(reply.prompt_time for reply in replies) else "ttft"
    measured: dict[str, float] = {}
    known: dict[str, Known] = {}
    typical: dict[str, int] = {}
    for metric in (prefill, "tpot"):
        used = [reply for reply in replies if not reply.exclusion(metric)]
        measured[metric] = floor(reply.seconds(metric) for reply in used)
        lengths = [
            each.output_tokens if metric == "tpot" else each.new_tokens for each in used or replies
        ]
        typical[metric] = max(2, round(median(lengths)))
        if verdict := known_of(metric, about, replies):
            known[metric] = verdict
    dots = tuple(
        (r.new_tokens, r.prompt_time) for r in replies if r.prompt_time and not r.exclusion("beat")
    )
    bound = "throttled: the hardware is at least so fast" if is_bound(replies, paces) else ""
    point = MeasuredPoint(
        name, about, measured, "reply", bound=bound, group=name, known=known, prompts=dots
    )
    return served_by(replace(point, prompt=typical[prefill], output=typical["tpot"]))


def about_of(reply: Reply) -> dict[str, str]:
    """Return what rules go by: the deployment that gave the reply."""
    name = f"{reply.provider} {reply.model} {reply.half_year or 'undated'}"
    about = {
        "table": "sram-replies",
        "provider": reply.provider,
        "model": reply.model,
        "half_year": reply.half_year,
    }
    return about | {"deployment": name, "chip": "", "engine": reply.provider, "precision": ""}


def served_by(point: MeasuredPoint) -> MeasuredPoint:
    """Return the point with the system that the rules assume, or with the reason why there is none."""
    try:
        return replace(point, system=run_by(point.about, None, "", {})[0])
    except InexpressibleError as error:
        return replace(point, reason=str(error))


def floor(times: Iterable[float]) -> float:
    """Return the 10 % quantile, interpolated; NaN of nothing."""
    values = np.array(list(times))
    return float(np.quantile(values, QUANTILE)) if len(values) else math.nan


def known_of(metric: str, about: Mapping[str, str], replies: list[Reply]) -> Known | None:
    """Return how a floor counts and why; None where it counts as any other."""
    if reason := not_scored(metric, about):
        return "listed", reason
    if "-H" not in about["half_year"]:
        return "listed", f"its date ({about['half_year'] or 'none'}) has no half-year"
    why = Counter(reply.exclusion(metric) for reply in replies)
    usable = why.pop("", 0)
    if usable < LEAST_REPLIES:
        others = ", ".join(f"{n} {cause}" for cause, n in why.most_common())
        unusable = f"; not usable: {others}" if others else ""
        return "listed", f"{usable} usable replies, fewer than {LEAST_REPLIES}{unusable}"
    if metric == "beat" and about["deployment"] in {
        rule.chips_fitted_to for rule in rules() if rule.holds(about)
    }:
        return "fitted", "its number of chips was chosen to match it"
    return None


def not_scored(metric: str, about: Mapping[str, str]) -> str:
    """Return why a rule lists a metric of a deployment without scoring it; nothing where none does."""
    return next(
        (
            rule.not_scored[metric]
            for rule in rules()
            if rule.holds(about) and metric in rule.not_scored
        ),
        "",
    )


def is_bound(replies: Iterable[Reply], paces: Iterable[int]) -> bool:
    """Return whether a floor of the time of an output token is only an upper bound of the hardware's.

    The service throttled most of the usable replies, or most of the fastest tenth.
    """
    used = sorted(
        (reply for reply in replies if not reply.exclusion("tpot")),
        key=lambda reply: reply.seconds("tpot"),
    )
    fastest = used[: max(1, round(QUANTILE * len(used)))]
    return any(
        2 * sum(reply.is_paced(paces) for reply in some) > len(some)
        for some in (used, fastest)
        if some
    )


def fitted_numbers(points: Iterable[MeasuredPoint]) -> list[str]:
    """Return the names of the numbers that were fitted to replies and that these points depend on.

    They are numbers of chips, each chosen to match a beat, and numbers of engines whose source says so.
    """
    names: dict[str, None] = {}  # a set that keeps its order
    for point in points:
        assert point.system is not None
        engine = point.system.engine
        fitted = [
            key
            for key, text in engine.source.items()
            if text.startswith("fitted") and "sram-replies" in text
        ]
        chips = [
            rule.chips_fitted_to
            for rule in rules()
            if rule.chips_fitted_to and rule.holds(point.about)
        ]
        names |= dict.fromkeys(
            [f"chips of {name}" for name in chips] + [f"{engine.id}.{key}" for key in fitted]
        )
    return list(names)
