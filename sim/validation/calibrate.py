"""Fits of an engine's numbers to measured points: `sramsim calibrate`.

    calibrate(find_entry("vllm", "engines")).moved  # the numbers, with standard errors

The engine's own file says which numbers are free, and in which range.  Each point is simulated as
in `validate`.  The fit is least squares in the logarithm of the time.  For a point that is an
upper bound, only a longer simulated time is an error.

A number is not identifiable if it ends at a bound or changes nothing.  Neither is one with a
standard error above half of its range, or above the number itself.  It keeps the value of the
file, and the others are fitted again.

A user's points are often few.  Then the numbers with the least effect on them keep their values
too, until fewer numbers than measurements are left.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.catalogue.measurements import read_csv_table
from sim.hardware.engine import Engine
from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.validation.free_numbers import FreeNumber, free_number, set_number
from sim.validation.own_points import usable_points
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
class Calibration:
    """A fit of an engine's numbers to measured points.

    error: root mean square of ln(simulated / measured).  A TTFT is weighted, and bounds that hold
    are left out.
    left_out: the same, with each point predicted from the others.
    configuration_left_out: the same, with each configuration predicted from the others. The points
    of a configuration differ only in their users. A number that only they identify keeps its value.
    """

    engine: str
    moved: tuple[FreeNumber, ...]  # identifiable numbers, fitted
    unidentifiable: tuple[FreeNumber, ...]
    points: tuple[MeasuredPoint, ...]
    tables: tuple[str, ...]
    error: float
    left_out: float
    configuration_left_out: float
    own: str = ""  # file of the user's points; empty for points of the catalogue

    @property
    def command(self) -> str:
        """The command that makes the fit, for sources."""
        return f"sramsim calibrate {self.engine}" + (f" --points {self.own}" if self.own else "")

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

    @property
    def errors(self) -> str:
        """The errors of the fit in words."""
        return (
            f"root mean square error {100 * self.error:.1f} %, leave-one-out"
            f" {100 * self.left_out:.1f} %, leave-one-configuration-out"
            f" {100 * self.configuration_left_out:.1f} %"
        )


def calibrate(
    path: Path,
    progress: Callable[[str], None] = lambda line: None,
    own_table: Path | None = None,
) -> Calibration:
    """Return the fit of the numbers that an engine's file declares free in `fit.bounds`.

    own_table: a user's measurements; None means the catalogue's points of that engine.
    Standard errors and leave-one-out errors are those of the linear problem at the minimum.
    See `left_out_residuals`.
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
    if own_table:
        own = [(own_table.stem, point) for point in usable_points(own_table, engine, progress)]
    else:
        own = _shipped_points(document, engine)
    points = [point for _, point in own]
    free = [free_number(document, keys, bounds) for keys, bounds in engine.fit.bounds.items()]
    fixed: list[FreeNumber] = []
    metrics = sum(not point.is_bound(metric) for point in points for metric in point.measured)
    if own_table:
        fixed = _weakest_numbers(document, free, points, metrics, progress)
        free = [number for number in free if number not in fixed]
    while True:
        if not free:
            raise UserError(
                f"{document.shown}: fit.bounds: got no number that is identifiable from"
                f" {metrics} measured ones; expected one; try other numbers"
            )
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
            _hold(document, number, progress)
        fixed += stuck
        free = [number for number in free if number.keys not in {s.keys for s in stuck}]
    counted = _counted(points, residuals)
    configurations = [point.group or point.id for point in points for _ in point.measured]

    def error(residuals: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.mean(residuals[counted] ** 2)))

    return Calibration(
        engine.id,
        tuple(fitted),
        tuple(fixed),
        tuple(points),
        tuple(dict.fromkeys(name for name, _ in own)),
        error(residuals),
        error(left_out_residuals(residuals, jacobian, range(len(residuals)))),
        error(left_out_residuals(residuals, jacobian, configurations)),
        own_table.name if own_table else "",
    )


def _shipped_points(document: Document, engine: Engine) -> list[tuple[str, MeasuredPoint]]:
    """Return the catalogue's points of an engine with their tables.  Raises: UserError if none."""
    engines = {engine.id, *(engine.fit.points_of if engine.fit else ())}
    own = [
        (name, point)
        for name in SETS
        for point in points_for_fits(shipped_table(name))
        if point.system and point.system.engine.id in engines
    ]
    if not own:
        raise UserError(
            f"{document.shown}: got no points for fits that were measured with engine {engine.id};"
            " expected at least one; try your own measurements, --points mine.csv"
        )
    return own


def _weakest_numbers(
    document: Document,
    free: list[FreeNumber],
    points: list[MeasuredPoint],
    metrics: int,
    progress: Callable[[str], None],
) -> list[FreeNumber]:
    """Return the numbers that few measurements cannot identify: those with the least effect.

    They are held, so that fewer numbers than measurements are left.
    """
    residuals = _Residuals(document, free, points, progress)
    start = residuals(residuals.start)
    effects = [
        float(np.abs(residuals(_moved(residuals.start, column)) - start).max())
        for column in range(len(free))
    ]
    residuals(residuals.start)
    strongest = sorted(range(len(free)), key=lambda column: -effects[column])
    kept = strongest[: max(0, metrics - 1)]
    weak = [number for column, number in enumerate(free) if column not in kept]
    for number in weak:
        _hold(document, number, progress)
    return weak


def _moved(place: NDArray[np.float64], column: int) -> NDArray[np.float64]:
    """Return a place with one number moved by a tenth of its range, inwards."""
    moved = place.copy()
    moved[column] += 0.1 if moved[column] < 0.5 else -0.1
    return moved


def _hold(document: Document, number: FreeNumber, progress: Callable[[str], None]) -> None:
    """Give a number its value of the file, and report that it is not identifiable."""
    progress(f"{' and '.join(number.keys)}: not identifiable; stays {number.written(number.start)}")
    set_number(document, number, number.start)


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


def _is_added(number: FreeNumber) -> bool:
    """Return whether a number is only added to a served TTFT, by a host."""
    keys = number.keys[0].split(".")
    return keys[0] == "hosts" and keys[-1] in ("request", "prompt_token")


def points_for_fits(path: Path) -> list[MeasuredPoint]:
    """Return the points of a table to which engines may be fitted; of replies, decode floors."""
    if is_replies(read_csv_table(path)[0]):
        return decode_floors(path)
    may = fitted_ids()
    return [point for point in points_of(path) if point.id in may and not point.not_fitted]


class _Residuals:
    """The residuals at a place of the free numbers, each a share of its range from its low end."""

    def __init__(
        self,
        document: Document,
        free: list[FreeNumber],
        points: list[MeasuredPoint],
        progress: Callable[[str], None],
    ) -> None:
        self.document, self.free, self.points, self.progress = document, free, points, progress
        self.low = np.array([number.low for number in free])
        self.width = np.array([number.high for number in free]) - self.low
        starts = np.array([number.start for number in free])
        self.start = np.clip((starts - self.low) / self.width, 0.01, 0.99)
        self.hosts = np.array([_is_added(number) for number in free])
        # Served times by the other numbers: they do not depend on what hosts add.
        self.known: dict[bytes, dict[str, dict[str, float]]] = {}
        self.runs = 0

    def __call__(self, place: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float[residual] at a place, and set its numbers in the document."""
        for number, value in zip(self.free, self.low + place * self.width, strict=True):
            set_number(self.document, number, value)
        times = self.known.setdefault(place[~self.hosts].tobytes(), {})
        values = fit_residuals(self.document.value(Engine), self.points, times)
        self.runs += 1
        self.progress(f"run {self.runs}: root mean square {np.sqrt(np.mean(values**2)):.4f}")
        return values


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

    residuals = _Residuals(document, free, points, progress)
    fit = optimize.least_squares(
        residuals,
        residuals.start,
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
    errors = np.sqrt(np.maximum(0.0, np.diag(covariance))) * residuals.width
    values = residuals.low + fit.x * residuals.width
    fitted = [
        replace(number, value=float(value), error=float(error))
        for number, value, error in zip(free, values, errors, strict=True)
    ]
    return fitted, rest, fit.jac


def left_out_residuals(
    residuals: NDArray[np.float64], jacobian: NDArray[np.float64], groups: Sequence[object]
) -> NDArray[np.float64]:
    """Return the residuals of each group in a fit to all other groups: float[residual].

    Residuals r of a group become r / (1 - H), with the group's part H of the hat matrix
    J (J^T J)^-1 J^T. That is exact for a linear problem.
    A number that only one group determines keeps its value. Its eigenvalue of 1 - H is below 1e-3.

    jacobian: float[residual, number]. groups: the group of each residual.
    """
    hat = jacobian @ np.linalg.pinv(jacobian)
    left_out = np.empty_like(residuals)
    members: dict[object, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    for own in members.values():
        eigenvalues, axes = np.linalg.eigh(np.eye(len(own)) - hat[np.ix_(own, own)])
        # The fit's soft loss leaves a residual along such an axis. Divided by an eigenvalue near 0
        # it would be a thousand times as large.
        divisors = np.where(eigenvalues < 1e-3, 1.0, eigenvalues)
        left_out[own] = axes @ ((axes.T @ residuals[own]) / divisors)
    return left_out


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
            with_kernels = engine.model_copy(update=dict(point.own_kernels))
            system = point.system.model_copy(update={"engine": with_kernels})
            known[point.key] = serve_point(replace(point, system=system))
        own = known[point.key]
        times = own | {"ttft": own.get("ttft", 0.0) + host_overhead(engine, point)}
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
