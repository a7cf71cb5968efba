"""Fits an engine's numbers to the points that it may be fitted to: `sramsim calibrate`.

What may move, and how far, stands in the engine's own file.  Each point is simulated as `validate` does it; least squares in the
logarithm of the time.  Of a point that is an upper bound only a longer simulated time is an error.

A number that ends at a bound, moves nothing, or has a standard error of half of its range or larger than itself is not
identifiable: it stays at what the file said, and the others are fitted again.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sim.catalogue.measurements import read_csv_table
from sim.hardware.engine import Engine
from sim.inputs.files import EXPONENT, Document, UserError, load_text
from sim.validation.points import MeasuredPoint
from sim.validation.replies import decode_floors, is_replies
from sim.validation.validate import SETS, fitted_ids, hosted, points_of, served, shipped

TTFT_WEIGHT = 0.3  # a TTFT scatters about three times as much as a TPOT: hosts, bursts.  Assumed.
SOFT = 0.1  # beyond 10 % a residual counts linearly, so that a row of another kind does not bend the rest
STEP = 0.02  # of a number's range: simulated requests meet or miss each other, and a smaller step would measure that
CLOSE = 0.002  # of the range: what is so near a bound is at it
VAGUE = 0.5  # of the range: a number whose standard error is more is not identifiable either
NEAR, ROUNDS = (
    1e-3,
    12,
)  # where least squares ends: what a round still gains, or how many there were
UNMOVED = 1e-6  # a number that moves no residual by more, from one end of its range to the other, has no effect


@dataclass(frozen=True, slots=True)
class Moved:
    """A number that was fitted; `keys` that share it, in units of the file."""

    keys: tuple[str, ...]
    low: float
    high: float
    unit: str
    start: float
    value: float
    error: float  # standard error

    def vagueness(self) -> float:
        """Its standard error as a part of its range."""
        return self.error / (self.high - self.low)

    def written(self, value: float) -> str:
        """Three significant digits, with the unit."""
        return f"{float(f'{value:.3g}'):g}{' ' if self.unit else ''}{self.unit}"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a fit found."""

    engine: str
    moved: tuple[Moved, ...]
    unidentifiable: tuple[Moved, ...]
    points: tuple[MeasuredPoint, ...]
    tables: tuple[str, ...]
    error: float  # root mean square of ln(simulated / measured), a TTFT weighted, without bounds that hold
    left_out: float  # the same of each point as the others foretell it

    @property
    def degrees(self) -> int:
        return len(self.moved)

    @property
    def data(self) -> str:
        """What the numbers were fitted to: '3 points and 4 bounds of calibration'."""
        bounds = sum(all(map(point.is_bound, point.measured)) for point in self.points)
        also = f" and {bounds} bound{'s' if bounds > 1 else ''}" if bounds else ""
        return f"{len(self.points) - bounds} points{also} of {', '.join(self.tables)}"


def calibrate(path: Path, progress: Callable[[str], None] = lambda line: None) -> Calibrated:
    """Fits what the engine's file lets move.

    Uncertainties and leave-one-out errors are those of the linear problem at the minimum: a residual left out is r / (1 - h).

    Raises: UserError where the file says nothing of a fit, or there are fewer points than numbers.
    """
    document = Document(path)
    engine = document.value(Engine)
    if engine.fit is None:
        raise UserError(
            f"{document.shown}: says nothing of a fit; give it fit: {{bounds: {{layer_overhead: [0 us, 200 us]}}}}"
        )
    every = [(name, point) for name in SETS for point in fitted_to(shipped(name))]
    mine = [
        (name, point)
        for name, point in every
        if point.system and point.system.engine.id == engine.id
    ]
    if not mine:
        raise UserError(
            f"{document.shown}: no point that may be fitted to was measured with engine {engine.id}"
        )
    free = [opened(document, keys, bounds) for keys, bounds in engine.fit.bounds.items()]
    used = [point for _, point in mine]
    fixed: list[Moved] = []
    while True:
        metrics = sum(not point.is_bound(metric) for point in used for metric in point.measured)
        if len(free) >= metrics:
            raise UserError(
                f"{document.shown}: {len(free)} numbers cannot be fitted to {metrics} measured ones"
            )
        found, residuals, jacobian = least_squares(document, free, used, progress)
        stuck = [
            each
            for each, moves in zip(found, np.abs(jacobian).max(axis=0), strict=True)
            if min(each.value - each.low, each.high - each.value) < CLOSE * (each.high - each.low)
            or moves < UNMOVED
        ]
        vaguest = max(found, key=Moved.vagueness)
        if not stuck and vaguest.vagueness() > VAGUE:
            stuck = [vaguest]
        if not stuck:
            stuck = [each for each in found if each.value < each.error]
        if not stuck:
            break
        for each in stuck:
            progress(
                f"{' and '.join(each.keys)}: not identifiable; stays {each.written(each.start)}"
            )
            put(document, each, each.start)
        fixed += stuck
        free = [each for each in free if each.keys not in {s.keys for s in stuck}]
        if not free:
            raise UserError(
                f"{document.shown}: no number is identifiable from its {metrics} measured ones"
            )
    spread = jacobian @ np.linalg.pinv(jacobian)
    left_out = (residuals / np.maximum(1 - np.diag(spread), 1e-3))[counted(used, residuals)]
    residuals = residuals[counted(used, residuals)]
    names = tuple(dict.fromkeys(name for name, _ in mine))
    rms = float(np.sqrt(np.mean(residuals**2)))
    return Calibrated(
        engine.id,
        tuple(found),
        tuple(fixed),
        tuple(used),
        names,
        rms,
        float(np.sqrt(np.mean(left_out**2))),
    )


def fitted_to(path: Path) -> list[MeasuredPoint]:
    """Return what of a table engines may be fitted to: of replies, the floors of decode."""
    if is_replies(read_csv_table(path)[0]):
        return decode_floors(path)
    return [point for point in points_of(path) if point.id in fitted_ids()]


def opened(document: Document, keys: str, bounds: tuple[str | float, str | float]) -> Moved:
    """A number that may move, from what the file says of it.  Raises: UserError where it is not one of the file's."""
    parts = tuple(key.strip() for key in keys.split(","))
    value: Any = document.data
    for key in parts[0].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f"{document.shown}: fit.bounds: the file has no {parts[0]}")
        value = value[key]
    try:
        (low, unit), (high, other), (start, given) = (
            split(bounds[0]),
            split(bounds[1]),
            split(value),
        )
    except ValueError:
        raise UserError(
            f"{document.shown}: fit.bounds: {parts[0]} and its bounds are to be numbers"
        ) from None
    if not given == unit == other:
        units = " and ".join(dict.fromkeys(each or "none" for each in (unit, other)))
        raise UserError(
            f"{document.shown}: fit.bounds: {parts[0]} is in {given or 'no unit'}, and its bounds in {units}"
        )
    if not low < high:
        raise UserError(
            f"{document.shown}: fit.bounds: {parts[0]} from {bounds[0]} to {bounds[1]} leaves nothing to move"
        )
    return Moved(parts, low, high, unit, start, start, math.nan)


def split(text: str | float) -> tuple[float, str]:
    """A number and its unit.  Raises: ValueError."""
    value, _, unit = str(text).partition(" ")
    return float(value), unit


def put(document: Document, moved: Moved, value: float) -> None:
    for key in moved.keys:
        document.set(f"{key}={value:.9f}{' ' if moved.unit else ''}{moved.unit}")


def least_squares(
    document: Document,
    free: list[Moved],
    used: list[MeasuredPoint],
    progress: Callable[[str], None],
) -> tuple[list[Moved], NDArray[np.float64], NDArray[np.float64]]:
    """The numbers at the minimum with their standard errors, the residuals there, and how each moves them."""
    from scipy import optimize

    low, high = np.array([each.low for each in free]), np.array([each.high for each in free])
    hosts = np.array([each.keys[0].startswith("request_overhead") for each in free])
    known: dict[
        bytes, dict[str, dict[str, float]]
    ] = {}  # what was served does not hang on what hosts take
    runs = 0

    def residuals(place: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal runs
        for each, value in zip(free, low + place * (high - low), strict=True):
            put(document, each, value)
        found = misses(document.value(Engine), used, known.setdefault(place[~hosts].tobytes(), {}))
        runs += 1
        progress(f"run {runs}: root mean square {np.sqrt(np.mean(found**2)):.4f}")
        return found

    start = np.clip((np.array([each.start for each in free]) - low) / (high - low), 0.01, 0.99)
    fit = optimize.least_squares(
        residuals,
        start,
        bounds=(0, 1),
        diff_step=STEP,
        loss="soft_l1",
        f_scale=SOFT,
        xtol=NEAR,
        ftol=NEAR,
        max_nfev=ROUNDS,
    )
    rest = residuals(fit.x)
    spare = max(1, int(counted(used, rest).sum()) - len(free))
    covariance = np.linalg.pinv(fit.jac.T @ fit.jac) * 2 * fit.cost / spare
    errors = np.sqrt(np.maximum(0.0, np.diag(covariance))) * (high - low)
    values = low + fit.x * (high - low)
    moved = [
        replace(each, value=float(v), error=float(e))
        for each, v, e in zip(free, values, errors, strict=True)
    ]
    return moved, rest, fit.jac


def misses(
    engine: Engine, used: list[MeasuredPoint], known: dict[str, dict[str, float]]
) -> NDArray[np.float64]:
    """Return the error of every metric of the points (see `Point.error`), a TTFT weighted; `known` keeps what was served."""
    found = []
    for point in used:
        if point.key not in known:
            assert point.system is not None
            known[point.key] = served(
                replace(point, system=point.system.model_copy(update={"engine": engine}))
            )
        own = known[point.key]
        times = own | {"ttft": own.get("ttft", 0.0) + hosted(engine, point.host)}
        for metric, measured in point.measured.items():
            weight = TTFT_WEIGHT if metric == "ttft" and len(point.measured) > 1 else 1.0
            found.append(weight * point.error(metric, times[metric], measured))
    return np.array(found)


def counted(used: list[MeasuredPoint], residuals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which residuals measure the fit: bool[residual].  A bound that holds does not: its 0 would flatter."""
    bounds = np.array([point.is_bound(metric) for point in used for metric in point.measured])
    return ~bounds | (residuals > 0)


# The file.


def rewritten(path: Path, fit: Calibrated) -> str:
    """The engine's file with what was found: values, sources, ranges of two standard errors."""
    document = Document(path)
    source, ranges = dict(document.data.get("source", {})), dict(document.data.get("range", {}))
    for each in fit.moved:
        for key in each.keys:
            document.set(f"{key}={each.written(each.value)}")
            value = f"{each.written(each.value)} +- {each.written(each.error)}"
            source[key] = f"fitted: {value}, to {fit.data}; sramsim calibrate {fit.engine}"
            low, high = (
                max(each.low, each.value - 2 * each.error),
                min(each.high, each.value + 2 * each.error),
            )
            ranges[key] = (each.written(low), each.written(high))
    for key in (key for each in fit.unidentifiable for key in each.keys):
        if source.get(key, "").startswith("fitted"):
            source[key] = f"assumed: {fit.data} do not identify it; sramsim calibrate {fit.engine}"
    errors = (
        f"root mean square error {100 * fit.error:.1f} %, leave-one-out {100 * fit.left_out:.1f} %"
    )
    found = f"{fit.degrees} number{'s' * (fit.degrees > 1)}, {fit.data}: {errors}"
    data = {
        key: value for key, value in document.data.items() if key not in ("source", "range", "fit")
    }
    data["fit"] = {**document.data["fit"], "found": found}
    measured_on = {
        point.system.chip.id for point in fit.points if point.system and point.system.chip
    }
    data["points"] = sorted({*data.get("points", ()), *measured_on})
    data["range"], data["source"] = ranges, source
    text = load_text(path, document.shown)
    head = "".join(text.splitlines(keepends=True)[: opening(text)])
    return head + "".join(emitted(data))


def opening(text: str) -> int:
    """How many lines of comment a file begins with."""
    lines = text.splitlines()
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))


def emitted(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in data.items():
        if key in ("source", "range", "fit"):
            lines.append(f"{key}:\n")
            lines += [f"  {name}: {flow(each)}\n" for name, each in value.items()]
        else:
            lines.append(f"{key}: {flow(value)}\n")
    return lines


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{quoted(str(key))}: {flow(each)}" for key, each in value.items())
            + "}"
        )
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return quoted(value)
    return json.dumps(value)


def quoted(text: str) -> str:
    """Plain where YAML reads it as the same text, else in quotes."""
    plain = (
        all(letter.isalnum() or letter in " ._/-()" for letter in text)
        and yaml.safe_load(text) == text
        and not EXPONENT.fullmatch(text)
    )
    return text if plain else json.dumps(text, ensure_ascii=False)
