"""Fits of an engine's numbers to measured points: `sramsim calibrate`.

    calibrate(find_entry("vllm", "engines")).moved  # the numbers, with standard errors

The engine's own file says which numbers are free, and in which range.  Each point is simulated as
in `validate`.  The fit is least squares in the logarithm of the time.  For a point that is an
upper bound, only a longer simulated time is an error.

A number is not identifiable if it ends at a bound or changes nothing.  Neither is one with a
standard error above half of its range, or above the number itself.  It keeps the value of the
file, and the others are fitted again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.catalogue.measurements import read_csv_table
from sim.hardware.engine import Engine
from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.units import QUANTITY
from sim.validation.points import MeasuredPoint
from sim.validation.replies import decode_floors, is_replies
from sim.validation.simulate import host_overhead, serve_point
from sim.validation.validate import SETS, fitted_ids, points_of, shipped_table

# A TTFT scatters about three times as much as a TPOT, because of hosts and bursts.  Assumed.
TTFT_WEIGHT = 0.3
# Beyond 10 %, a residual counts linearly, so that a row of another kind does not bend the rest.
SOFT = 0.1
# Step of the derivatives, relative to a number's range.  Simulated requests meet or miss each
# other, and a smaller step would measure that.
DIFFERENCE_STEP = 0.02
CLOSE = 0.002  # of the range: a number so near a bound is at the bound
VAGUE = 0.5  # of the range: a number with a larger standard error is not identifiable
MIN_GAIN = 1e-3  # least squares ends when a round gains less
MAX_EVALUATIONS = 12  # of least squares
UNMOVED = 1e-6  # a number that changes no residual by more, over its whole range, has no effect


@dataclass(frozen=True, slots=True)
class FreeNumber:
    """A number that a fit may change, before or after it, in the unit of the file.

    keys: keys of the file that share the number.
    error: its standard error; nan before the fit.
    """

    keys: tuple[str, ...]
    low: float
    high: float
    unit: str
    start: float
    value: float
    error: float

    def vagueness(self) -> float:
        """Return the standard error as a part of the range."""
        return self.error / (self.high - self.low)

    def written(self, value: float) -> str:
        """Return a value with three significant digits and the unit."""
        return f"{float(f'{value:.3g}'):g}{' ' if self.unit else ''}{self.unit}"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fit of an engine's numbers to measured points.

    error: root mean square of ln(simulated / measured).  A TTFT is weighted, and bounds that hold
    are left out.
    left_out: the same, with each point predicted from the others.
    """

    engine: str
    moved: tuple[FreeNumber, ...]  # identifiable numbers, fitted
    unidentifiable: tuple[FreeNumber, ...]
    points: tuple[MeasuredPoint, ...]
    tables: tuple[str, ...]
    error: float
    left_out: float

    @property
    def degrees(self) -> int:
        """Degrees of freedom: how many numbers were fitted."""
        return len(self.moved)

    @property
    def data(self) -> str:
        """Points of the fit in words, such as '3 points and 4 bounds of calibration'."""
        bounds = sum(all(map(point.is_bound, point.measured)) for point in self.points)
        also = f" and {bounds} bound{'s' if bounds > 1 else ''}" if bounds else ""
        return f"{len(self.points) - bounds} points{also} of {', '.join(self.tables)}"


def calibrate(path: Path, progress: Callable[[str], None] = lambda line: None) -> Calibration:
    """Return the fit of the numbers that an engine's file declares free in `fit.bounds`.

    Standard errors and leave-one-out errors are those of the linear problem at the minimum.
    A residual r that is left out becomes r / (1 - h), with its leverage h.
    Raises: UserError if the file has no `fit`, no points, fewer points than numbers, or if no
    number is identifiable.
    """
    document = Document(path)
    engine = document.value(Engine)
    if engine.fit is None:
        raise UserError(
            f"{document.shown}: fit: got none; expected the free numbers with their bounds;"
            " try fit: {bounds: {layer_overhead: [0 us, 200 us]}}"
        )
    own = [
        (name, point)
        for name in SETS
        for point in points_for_fits(shipped_table(name))
        if point.system and point.system.engine.id == engine.id
    ]
    if not own:
        raise UserError(
            f"{document.shown}: got no points for fits that were measured with engine {engine.id};"
            " expected at least one; try an engine of the catalogue"
        )
    points = [point for _, point in own]
    free = [free_number(document, keys, bounds) for keys, bounds in engine.fit.bounds.items()]
    fixed: list[FreeNumber] = []
    metrics = sum(not point.is_bound(metric) for point in points for metric in point.measured)
    while True:
        if len(free) >= metrics:
            raise UserError(
                f"{document.shown}: fit.bounds: got {len(free)} numbers to fit to {metrics}"
                " measured ones; expected fewer; try without some"
            )
        fitted, residuals, jacobian = _least_squares(document, free, points, progress)
        stuck = _unidentifiable(fitted, jacobian)
        if not stuck:
            break
        for number in stuck:
            progress(
                f"{' and '.join(number.keys)}: not identifiable;"
                f" stays {number.written(number.start)}"
            )
            _put(document, number, number.start)
        fixed += stuck
        free = [number for number in free if number.keys not in {s.keys for s in stuck}]
        if not free:
            raise UserError(
                f"{document.shown}: fit.bounds: got no number that is identifiable from"
                f" {metrics} measured ones; expected one; try other numbers"
            )
    leverage = np.diag(jacobian @ np.linalg.pinv(jacobian))
    counted = _counted(points, residuals)
    left_out = (residuals / np.maximum(1 - leverage, 1e-3))[counted]
    residuals = residuals[counted]
    return Calibration(
        engine.id,
        tuple(fitted),
        tuple(fixed),
        tuple(points),
        tuple(dict.fromkeys(name for name, _ in own)),
        float(np.sqrt(np.mean(residuals**2))),
        float(np.sqrt(np.mean(left_out**2))),
    )


def _unidentifiable(fitted: list[FreeNumber], jacobian: NDArray[np.float64]) -> list[FreeNumber]:
    """Return the numbers to fix next, because the points do not identify them.

    Numbers at a bound or without effect come first.  The next is the one with the largest standard
    error relative to its range.  Numbers smaller than their standard error come last.
    jacobian: float[residual, number].
    """
    stuck = [
        number
        for number, effect in zip(fitted, np.abs(jacobian).max(axis=0), strict=True)
        if min(number.value - number.low, number.high - number.value)
        < CLOSE * (number.high - number.low)
        or effect < UNMOVED
    ]
    vaguest = max(fitted, key=FreeNumber.vagueness)
    if not stuck and vaguest.vagueness() > VAGUE:
        stuck = [vaguest]
    return stuck or [number for number in fitted if number.value < number.error]


def points_for_fits(path: Path) -> list[MeasuredPoint]:
    """Return the points of a table to which engines may be fitted; of replies, decode floors."""
    if is_replies(read_csv_table(path)[0]):
        return decode_floors(path)
    return [point for point in points_of(path) if point.id in fitted_ids()]


def free_number(
    document: Document, keys: str, bounds: tuple[str | float, str | float]
) -> FreeNumber:
    """Return a number that may change, from an entry of `fit.bounds` in an engine's file.

    Raises: UserError if the file has no such number, or the bounds do not fit to it.
    """
    parts = tuple(key.strip() for key in keys.split(","))
    where = f"{document.shown}: fit.bounds.{parts[0]}"
    value: Any = document.data
    for key in parts[0].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f"{where}: got a key that the file has not; expected one of its keys")
        value = value[key]
    try:
        (low, low_unit), (high, high_unit), (start, unit) = (
            _split_quantity(bounds[0]),
            _split_quantity(bounds[1]),
            _split_quantity(value),
        )
    except ValueError:
        raise UserError(
            f"{where}: got {bounds[0]}, {bounds[1]} for {value}; expected numbers"
        ) from None
    if not unit == low_unit == high_unit:
        units = " and ".join(dict.fromkeys(part or "none" for part in (low_unit, high_unit)))
        raise UserError(
            f"{where}: got bounds in {units}; expected {unit or 'no unit'}, the number's own"
        )
    if not low < high:
        raise UserError(
            f"{where}: got {bounds[0]} to {bounds[1]}; expected a lower bound below the upper one"
        )
    return FreeNumber(parts, low, high, unit, start, start, math.nan)


def _split_quantity(text: str | float) -> tuple[float, str]:
    """Return a number and its unit.  Raises: ValueError if it does not begin with a number."""
    match = QUANTITY.fullmatch(str(text))
    return (float(match[1]), match[2]) if match else (float(str(text)), "")


def _put(document: Document, number: FreeNumber, value: float) -> None:
    """Set all keys of a number in the document to a value."""
    for key in number.keys:
        document.set(f"{key}={value:.9f}{' ' if number.unit else ''}{number.unit}")


def _least_squares(
    document: Document,
    free: list[FreeNumber],
    points: list[MeasuredPoint],
    progress: Callable[[str], None],
) -> tuple[list[FreeNumber], NDArray[np.float64], NDArray[np.float64]]:
    """Return the numbers at the minimum, the residuals, and the derivatives of the residuals.

    residuals: float[residual].  derivatives: float[residual, number], per range of a number.
    """
    from scipy import optimize

    low = np.array([number.low for number in free])
    high = np.array([number.high for number in free])
    hosts = np.array([number.keys[0].startswith("request_overhead") for number in free])
    # Served times by the other numbers: they do not depend on what hosts add.
    known: dict[bytes, dict[str, dict[str, float]]] = {}
    runs = 0

    def residuals(place: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal runs
        for number, value in zip(free, low + place * (high - low), strict=True):
            _put(document, number, value)
        times = known.setdefault(place[~hosts].tobytes(), {})
        values = fit_residuals(document.value(Engine), points, times)
        runs += 1
        progress(f"run {runs}: root mean square {np.sqrt(np.mean(values**2)):.4f}")
        return values

    start = (np.array([number.start for number in free]) - low) / (high - low)
    fit = optimize.least_squares(
        residuals,
        np.clip(start, 0.01, 0.99),
        bounds=(0, 1),
        diff_step=DIFFERENCE_STEP,
        loss="soft_l1",
        f_scale=SOFT,
        xtol=MIN_GAIN,
        ftol=MIN_GAIN,
        max_nfev=MAX_EVALUATIONS,
    )
    rest = residuals(fit.x)
    spare = max(1, int(_counted(points, rest).sum()) - len(free))
    covariance = np.linalg.pinv(fit.jac.T @ fit.jac) * 2 * fit.cost / spare
    errors = np.sqrt(np.maximum(0.0, np.diag(covariance))) * (high - low)
    values = low + fit.x * (high - low)
    fitted = [
        replace(number, value=float(value), error=float(error))
        for number, value, error in zip(free, values, errors, strict=True)
    ]
    return fitted, rest, fit.jac


def fit_residuals(
    engine: Engine, points: list[MeasuredPoint], known: dict[str, dict[str, float]]
) -> NDArray[np.float64]:
    """Return the error of every metric of the points: float[residual], a TTFT weighted.

    known: served times by key of a point; the function adds the missing ones.
    An error is ln(simulated / measured), so that half the time is as far as twice the time.
    See `MeasuredPoint.error` for bounds.
    """
    errors = []
    for point in points:
        if point.key not in known:
            assert point.system is not None
            system = point.system.model_copy(update={"engine": engine})
            known[point.key] = serve_point(replace(point, system=system))
        own = known[point.key]
        times = own | {"ttft": own.get("ttft", 0.0) + host_overhead(engine, point.host)}
        for metric, measured in point.measured.items():
            weight = TTFT_WEIGHT if metric == "ttft" and len(point.measured) > 1 else 1.0
            errors.append(weight * math.log1p(point.error(metric, times[metric], measured)))
    return np.array(errors)


def _counted(points: list[MeasuredPoint], residuals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which residuals measure the fit: bool[residual].

    A bound that holds does not, because its 0 would flatter.
    """
    bounds = np.array([point.is_bound(metric) for point in points for metric in point.measured])
    return ~bounds | (residuals > 0)
