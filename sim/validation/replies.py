"""Replies of SRAM services as points: from the server's times of many requests, their floors.

    floors(shipped_table("sram-replies"))[0].measured  # {'beat': ..., 'tpot': ...} in seconds

A deployment is a provider, a model and a half-year.  A floor is the 10 % quantile of a metric over
its usable replies.  Load and waiting only add to the time that the hardware takes.
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
from sim.validation.points import REPLIES, Known, MeasuredPoint
from sim.validation.systems import InexpressibleError, measurement_rules, system_of_row

QUANTILE = 0.1
LEAST_REPLIES = 10  # of a floor; a 10 % quantile of fewer replies is their minimum
LEAST_PROMPT, LEAST_OUTPUT = 100, 50  # tokens; with fewer, fixed times matter
NEAR_PACE = 0.03  # relative difference of a speed from a throttle that caused it
# The services throttled until this month. A later reply is paced only if a flag says so.
LAST_PACED = "2025-09"
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
    """A reply of a service: the times of one request [s], and its numbers of tokens.

    A time is None if the service does not print it.
    """

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
        """The half-year, such as 2024-H1; the date itself if it has no month."""
        year, _, month = self.date.partition("-")
        return f"{year}-H{1 if int(month) <= 6 else 2}" if month else self.date

    @property
    def paces(self) -> set[int]:
        """Throttles that flags of the reply name [token/s]."""
        return {
            int(flag.removeprefix("paced-")) for flag in self.flags if flag.startswith("paced-")
        }

    def exclusion(self, metric: str) -> str:
        """Return why the reply cannot count for a metric; nothing if it can.

        A flag excludes a reply only from the metric that it concerns.  A short answer has a good
        prompt time, and a short prompt a good time per token.  An image (or what may be one)
        lengthens the prompt and its time, not the time of an output token.
        """
        if flags := sorted(self.flags & EXCLUDED[metric]):
            return flags[0]
        if metric == "tpot":
            short = self.output_tokens < LEAST_OUTPUT
            missing = self.completion_time is None
            if self.speculative:
                return "speculative"
            return "short-output" if short else "no time" if missing else ""
        short = self.new_tokens < LEAST_PROMPT
        missing = (self.ttft if metric == "ttft" else self.prompt_time) is None
        return "short-prompt" if short else "no time" if missing else ""

    def seconds(self, metric: str) -> float:
        """Return the time of a metric in the reply; nan if the reply cannot count.

        `beat`: prompt time per new token.
        `tpot`: completion time per output token, because it includes the time of the first token.
        `ttft`: as printed, by services that print no prompt time.
        """
        if self.exclusion(metric):
            return math.nan
        if metric == "ttft":
            return self.ttft or math.nan
        if metric == "beat":
            return (self.prompt_time or math.nan) / self.new_tokens
        return (self.completion_time or math.nan) / self.output_tokens

    def is_paced(self, paces: Iterable[int]) -> bool:
        """Return whether the service throttled the answer.

        A flag says so, or the speed is near a known pace.  A throttle that ended cannot pace a
        later reply, however near its speed is.
        """
        near = any(abs(self.seconds("tpot") * pace - 1) <= NEAR_PACE for pace in paces)
        return bool(self.paces) or (near and self.date[:7] <= LAST_PACED)


def is_replies(header: Iterable[str]) -> bool:
    """Return whether a table with these columns is one of replies."""
    return set(REPLIES) <= set(header)


def floors(path: Path) -> list[MeasuredPoint]:
    """Return the deployments of a table of replies, each with its floors.

    Raises: ScenarioError if a cell is malformed.
    """
    groups: dict[tuple[str, str, str], list[Reply]] = {}
    paces: dict[tuple[str, str, str], set[int]] = {}
    for replies, known_paces in _replies_by_model(path):
        for reply in replies:
            key = reply.provider, reply.model, reply.half_year
            groups.setdefault(key, []).append(reply)
            paces[key] = known_paces
    return [_deployment_point(replies, paces[key]) for key, replies in sorted(groups.items())]


def decode_floors(path: Path) -> list[MeasuredPoint]:
    """Return the floors of the time of an output token, to which engines are fitted.

    There is one for each provider and model, over all half-years.
    Left out: throttled replies, replies of half-years whose decode floor is not scored, and
    models with fewer than 10 other replies.
    Raises: ScenarioError if a cell is malformed.
    """
    points = []
    for replies, paces in _replies_by_model(path):
        used = [
            reply
            for reply in replies
            if not reply.exclusion("tpot")
            and not reply.is_paced(paces)
            and not _unscored_reason("tpot", _names_of(reply))
        ]
        if len(used) >= LEAST_REPLIES:
            about = _names_of(used[0])
            measured = {"tpot": _floor(reply.seconds("tpot") for reply in used)}
            output = max(2, round(median(reply.output_tokens for reply in used)))
            name = f"{about['provider']} {about['model']}"
            point = MeasuredPoint(
                name, about, measured, "reply", prompt=output, output=output, group=name
            )
            points.append(_with_assumed_system(point))
    return points


def _replies_by_model(path: Path) -> list[tuple[list[Reply], set[int]]]:
    """Return the replies of each provider and model, and the paces that they name [token/s]."""
    measurement_rules()  # before the rows: an error in the rules is not an error of a row
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
    """Return the reply of a row.  Raises: ValueError that begins with the column."""
    if not re.fullmatch(r"(20[0-9]{2}(-(0[1-9]|1[0-2]))?)?", row["date"]):
        raise ValueError(f"date: got {row['date']!r}; expected YYYY-MM, or YYYY, or nothing")
    if row["speculative"] not in SPECULATIVE:
        raise ValueError(f"speculative: got {row['speculative']!r}; expected 0, yes or unknown")
    flags = frozenset(filter(None, row["flags"].split(";")))
    for flag in sorted(flags - FLAGS):
        if not re.fullmatch("paced-[1-9][0-9]*", flag):
            raise ValueError(f"flags: got {flag!r}; expected paced-N, {', '.join(sorted(FLAGS))}")
    prompt, output, cached = (
        _whole_number(row, f"{key}_tokens") for key in ("prompt", "completion", "cached")
    )
    if cached > prompt:
        raise ValueError(f"cached_tokens: got {cached}; expected at most prompt_tokens, {prompt}")
    rate, acceptance = (
        _positive_number(row, "tokens_per_s_reported"),
        _positive_number(row, "acceptance_rate"),
    )
    completion_time = _positive_number(row, "completion_time_s")
    if completion_time is None and rate:
        completion_time = output / rate
    return Reply(
        provider=row["provider"] or "unknown",
        model=row["model"] or "unknown",
        date=row["date"],
        new_tokens=prompt - cached,
        output_tokens=output,
        prompt_time=_positive_number(row, "prompt_time_s"),
        completion_time=completion_time,
        ttft=_positive_number(row, "ttft_s"),
        speculative=row["speculative"] == "yes" or (acceptance or 0) > 1,
        flags=flags,
    )


def _whole_number(row: Mapping[str, str], key: str) -> int:
    """Return a number of tokens; 0 if the cell is empty.  Raises: ValueError."""
    if not re.fullmatch("[0-9]{0,9}", row[key]):
        raise ValueError(f"{key}: got {row[key]!r}; expected a whole number of tokens")
    return int(row[key] or 0)


def _positive_number(row: Mapping[str, str], key: str) -> float | None:
    """Return a finite number above 0; None if the cell is empty.  Raises: ValueError."""
    if not row[key]:
        return None
    try:
        value = float(row[key])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{key}: got {row[key]!r}; expected a number above 0, or nothing")
    return value


def _deployment_point(replies: list[Reply], paces: Iterable[int]) -> MeasuredPoint:
    """Return the point of one deployment: its floors, and how each of them counts."""
    about = _names_of(replies[0])
    name = about["deployment"]
    prefill = "beat" if any(reply.prompt_time for reply in replies) else "ttft"
    measured: dict[str, float] = {}
    known: dict[str, Known] = {}
    typical: dict[str, int] = {}
    for metric in (prefill, "tpot"):
        used = [reply for reply in replies if not reply.exclusion(metric)]
        measured[metric] = _floor(reply.seconds(metric) for reply in used)
        lengths = [
            reply.output_tokens if metric == "tpot" else reply.new_tokens
            for reply in used or replies
        ]
        typical[metric] = max(2, round(median(lengths)))
        if verdict := _special_status(metric, about, replies):
            known[metric] = verdict
    dots = tuple(
        (r.new_tokens, r.prompt_time) for r in replies if r.prompt_time and not r.exclusion("beat")
    )
    bound = "throttled: the hardware is at least as fast" if _is_tpot_bound(replies, paces) else ""
    point = MeasuredPoint(
        name, about, measured, "reply", bound=bound, group=name, known=known, prompts=dots
    )
    return _with_assumed_system(replace(point, prompt=typical[prefill], output=typical["tpot"]))


def _names_of(reply: Reply) -> dict[str, str]:
    """Return the names that rules match: those of the deployment that sent the reply."""
    name = f"{reply.provider} {reply.model} {reply.half_year or 'undated'}"
    about = {
        "table": "sram-replies",
        "provider": reply.provider,
        "model": reply.model,
        "half_year": reply.half_year,
    }
    return about | {"deployment": name, "chip": "", "engine": reply.provider, "precision": ""}


def _with_assumed_system(point: MeasuredPoint) -> MeasuredPoint:
    """Return the point with the system that the rules assume, or the reason why there is none."""
    try:
        return replace(point, system=system_of_row(point.about, None, "", {}).system)
    except InexpressibleError as error:
        return replace(point, reason=str(error))


def _floor(times: Iterable[float]) -> float:
    """Return the 10 % quantile of times, interpolated; nan if there are none."""
    values = np.array(list(times))
    return float(np.quantile(values, QUANTILE)) if len(values) else math.nan


def _special_status(metric: str, about: Mapping[str, str], replies: list[Reply]) -> Known | None:
    """Return how a floor counts and why; None if it counts as any other."""
    if reason := _unscored_reason(metric, about):
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
        rule.chips_fitted_to for rule in measurement_rules() if rule.holds(about)
    }:
        return "fitted", "its number of chips was chosen to match it"
    return None


def _unscored_reason(metric: str, about: Mapping[str, str]) -> str:
    """Return why a rule lists a metric of a deployment unscored; nothing if no rule does."""
    return next(
        (
            rule.not_scored[metric]
            for rule in measurement_rules()
            if rule.holds(about) and metric in rule.not_scored
        ),
        "",
    )


def _is_tpot_bound(replies: Iterable[Reply], paces: Iterable[int]) -> bool:
    """Return whether the floor of the time of an output token is only an upper bound.

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
    """Return the names of the numbers fitted to replies on which these points depend.

    They are numbers of chips, each chosen to match a beat, and numbers of engines whose source
    says so.
    """
    names: dict[str, None] = {}  # an ordered set
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
            for rule in measurement_rules()
            if rule.chips_fitted_to and rule.holds(point.about)
        ]
        names |= dict.fromkeys(
            [f"chips of {name}" for name in chips] + [f"{engine.id}.{key}" for key in fitted]
        )
    return list(names)
