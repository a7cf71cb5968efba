"""Fits of the multiplies of scenarios/kernels to their times alone.

    python -c "from sim.validation.kernel_fits import *; print(*fit_lines('vllm'), sep='\\n')"

A fit minimizes ln(simulated / measured) over all rows of a generation, a precision and a backend.
Rows in doubt are left out. `exposed` is one number for all of them.

A multiply that takes longer than the same one of more tokens is left out, too. Another kernel ran,
such as vLLM's FP8 kernel for one token on Blackwell. Numbers of one kernel cannot have both times.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.catalogue.measurements import read_csv_table
from sim.cost.multiplies import multiply_alone
from sim.cost.terms import Sides
from sim.hardware.kernels import MultiplyKernel
from sim.inputs.names import catalogue_names
from sim.validation.kernel_works import FEW_TOKENS, FORMATS, MultiplyWork
from sim.validation.kernels import TimedKernel, timed_kernel
from sim.validation.validate import shipped_table

# An error beyond 5 % counts linearly, so that an odd shape does not bend the rest.
SOFT_ERROR = 0.05
STARTS = ((3.0, 0.8, 0.6, 2.0), (8.0, 0.6, 0.5, 3.0), (1.0, 0.9, 0.7, 0.5), (12.0, 0.5, 0.4, 1.0))
LARGEST_LOSSES = (60.0, 1.0, 1.0, 20.0)  # us, two shares, ns for each input
WORTH = 0.9  # a walk counts if it lowers the cost of the fit below this part of it
MUCH_LONGER = 1.1  # than the same multiply of more tokens
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the shorter side that the longer one may not hide

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KernelFit:
    """A fitted kernel.

    cost: sum over rows of the loss that the fit minimizes.
    error: median of |simulated / measured - 1| up to 64 tokens [%].
    """

    kernel: MultiplyKernel
    cost: float
    error: float


def timed_groups(backend: str) -> dict[tuple[str, str], list[TimedKernel]]:
    """Return the rows of a backend to fit to, by generation and dtype."""
    groups: dict[tuple[str, str], list[TimedKernel]] = {}
    for _, row in read_csv_table(shipped_table("kernels"))[1]:
        if row["op"] == "gemm" and row["backend"] == backend and not row["doubt"]:
            timed = timed_kernel(row)
            groups.setdefault((timed.chip.generation, row["dtype"]), []).append(timed)
    return {key: [row for row in rows if _is_steady(row, rows)] for key, rows in groups.items()}


def _is_steady(row: TimedKernel, rows: list[TimedKernel]) -> bool:
    """Return whether no multiply of more tokens is much faster."""
    assert isinstance(row.work, MultiplyWork)
    larger = (
        other.seconds
        for other in rows
        if isinstance(other.work, MultiplyWork)
        and (other.chip.id, other.work.shape) == (row.chip.id, row.work.shape)
        and other.work.tokens > row.work.tokens
    )
    return row.seconds <= MUCH_LONGER * min(larger, default=row.seconds)


@lru_cache(maxsize=1)
def shipped_exposed() -> float:
    """Return `exposed` of all files of kernels that have times of multiplies."""
    backends = catalogue_names("kernels")
    return fit_exposed(rows for name in backends for rows in timed_groups(name).values())


def fit_exposed(groups: Iterable[list[TimedKernel]]) -> float:
    """Return the one of `SHARES` with the least error, summed over groups of rows.

    For each share, every group has the kernel that fits it best.
    """
    groups = list(groups)
    return min(SHARES, key=lambda share: sum(fit_kernel(rows, share).cost for rows in groups))


def fit_kernel(rows: list[TimedKernel], exposed: float) -> KernelFit:
    """Return the kernel with the least error on some rows.

    exposed: share of the shorter of reading and computing that the longer one does not hide.
    """
    from scipy import optimize

    works = [timed.work for timed in rows if isinstance(timed.work, MultiplyWork)]
    multiplies = [work.multiply(t.engine, t.chip) for work, t in zip(works, rows, strict=True)]
    bare = [
        multiply_alone(timed.chip, multiply, work.tokens)
        for timed, work, multiply in zip(rows, works, multiplies, strict=True)
    ]
    compute = np.array([sides.ideal_compute for sides in bare])
    memory = np.array([sides.ideal_memory for sides in bare])
    inputs = np.array([work.shape[0] for work in works], np.float64)
    measured = np.array([timed.seconds for timed in rows])

    def simulated(place: _Floats) -> _Floats:
        read = np.maximum(memory / place[1], 1e-9 * inputs * place[3])
        sides = Sides(compute / place[2], read, 0.0, 0.0, exposed)
        times: _Floats = 1e-6 * place[0] + sides.seconds
        return times

    def best(walks: bool) -> tuple[float, _Floats]:
        fits = [
            optimize.least_squares(
                lambda place: np.log(simulated(place) / measured),
                [*start[:3], start[3] if walks else 0.0],
                bounds=(
                    [0, 0.05, 0.05, 0],
                    [*LARGEST_LOSSES[:3], LARGEST_LOSSES[3] if walks else 1e-9],
                ),
                loss="soft_l1",
                f_scale=SOFT_ERROR,
            )
            for start in STARTS
        ]
        fit = min(fits, key=lambda fit: float(fit.cost))
        return float(fit.cost), fit.x

    (plain_cost, place), (cost, walking) = best(False), best(True)
    if cost < WORTH * plain_cost:
        place = walking
    fixed, reading, computing, walk = (float(f"{value:.3g}") for value in place)
    few = np.array([work.tokens <= FEW_TOKENS for work in works])
    kernel = MultiplyKernel(
        fixed=1e-6 * fixed,
        memory_efficiency=reading,
        compute_efficiency=computing,
        per_input=1e-9 * walk if cost < WORTH * plain_cost else 0.0,
    )
    errors = np.abs(simulated(place) / measured - 1)[few]
    return KernelFit(kernel, min(cost, plain_cost), 100 * float(np.median(errors)))


def fit_lines(backend: str) -> Iterator[str]:
    """Yield the lines of a backend's kernels, and after an empty line their sources."""
    exposed = shipped_exposed()
    yield f"exposed: {exposed:g}"
    yield "multiplies:"
    sources = [
        f'  exposed: "fitted: of {", ".join(f"{share:g}" for share in SHARES)} the nearest to the'
        ' times of all multiplies in kernels.csv; one number for all files"'
    ]
    generation = ""
    for (own, dtype), rows in sorted(timed_groups(backend).items()):
        if own != generation:
            yield f"  {own}:"
            generation = own
        fit = fit_kernel(rows, exposed)
        kernel = fit.kernel
        stored = FORMATS[dtype][0]
        name = dtype if dtype == "fp8_block" else stored.precision
        walk = f", per_input: {1e9 * kernel.per_input:.3g} ns" if kernel.per_input else ""
        yield (
            f"    {name}: {{fixed: {1e6 * kernel.fixed:.3g} us,"
            f" memory_efficiency: {kernel.memory_efficiency:g},"
            f" compute_efficiency: {kernel.compute_efficiency:g}{walk}}}"
        )
        chips = ", ".join(sorted({timed.chip.id for timed in rows}))
        sources.append(
            f'  multiplies.{own}.{name}: "fitted: to {len(rows)} times on {chips} in kernels.csv,'
            f' median error {fit.error:.1f} % up to {FEW_TOKENS} tokens"'
        )
    yield ""
    yield from sources
