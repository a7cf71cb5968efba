"""Fits of collectives to times of all-reduces and others: shares of links, and latencies.

python -c "from sim.validation.link_fits import *; print(*link_lines(), sep='\\n')"
"""

from collections.abc import Iterator, Mapping

import numpy as np

from sim.hardware.kernels import CollectiveKernel, Kernels
from sim.validation.kernel_works import CollectiveWork
from sim.validation.kernels import engine_of_kernels
from sim.validation.loss_fits import (
    Floats,
    LossFit,
    MeasuredWork,
    least_error,
    mapping_text,
    measured_works,
    points_text,
)


def link_fits(generation: str) -> tuple[dict[str, dict[str, float]], dict[str, LossFit]]:
    """Return the bandwidth shares of collectives by chip and size, and latencies by backend.

    Shares belong to links, so all backends of a chip have equal shares.
    """
    rows = [
        row
        for row in measured_works()
        if isinstance(row.work, CollectiveWork) and row.chip.generation == generation
    ]
    chips = {row.chip.id: row.chip for row in rows}
    backends = sorted({row.backend for row in rows})
    sizes = {
        chip: sorted({size for row in rows if row.chip.id == chip for size in _chips_of(row)})
        for chip in chips
    }
    names = [f"memory_efficiency.{chip}.{size}" for chip in chips for size in sizes[chip]]
    for backend in backends:
        names += [f"latency.{backend}", f"latency_per_chip.{backend}"]
    measured = np.array([row.seconds for row in rows])

    def simulated(numbers: Mapping[str, float]) -> Floats:
        engines = {
            backend: engine_of_kernels(
                Kernels(
                    otherwise=generation,
                    collectives={
                        generation: CollectiveKernel(
                            latency=1e-6 * numbers[f"latency.{backend}"],
                            latency_per_chip=1e-6 * numbers[f"latency_per_chip.{backend}"],
                        )
                    },
                )
            )
            for backend in backends
        }
        joined = {
            name: chip.model_copy(
                update={
                    "topology": chip.topology.model_copy(
                        update={
                            "collective_efficiency": {
                                str(size): numbers[f"memory_efficiency.{name}.{size}"]
                                for size in sizes[name]
                            }
                        }
                    )
                }
            )
            for name, chip in chips.items()
        }
        return np.array(
            [row.work.seconds(engines[row.backend], joined[row.chip.id]) for row in rows]
        )

    fit = least_error(tuple(names), simulated, measured)
    shares = {
        chip: {str(size): fit.numbers[f"memory_efficiency.{chip}.{size}"] for size in sizes[chip]}
        for chip in chips
    }
    errors = np.abs(simulated(fit.numbers) / measured - 1)
    latencies = {
        backend: LossFit(
            {name: fit.numbers[f"{name}.{backend}"] for name in ("latency", "latency_per_chip")},
            tuple(name.partition(".")[0] for name in fit.held if name.endswith(f".{backend}")),
            100 * float(np.median(errors[of := [row.backend == backend for row in rows]])),
            points_text([row for row, own in zip(rows, of, strict=True) if own]),
        )
        for backend in backends
    }
    return shares, latencies


def link_lines() -> Iterator[str]:
    """Yield bandwidth shares of collectives by chip, and latencies by generation and backend."""
    works = (row for row in measured_works() if isinstance(row.work, CollectiveWork))
    for generation in sorted({row.chip.generation for row in works}):
        shares, latencies = link_fits(generation)
        for chip, by_size in shares.items():
            yield f"{chip}: collective_efficiency: {mapping_text(by_size)}"
        for backend, fit in latencies.items():
            yield f"{backend}: {generation}: {mapping_text(fit.numbers)}"
            key, of = f"collectives.{generation}", f"{fit.points} in kernels.csv"
            yield f'  {key}: "fitted: to {of}, median error {fit.error:.1f} %"'
            yield from (
                f'  {key}.{name}: "assumed: within the latency of the links"' for name in fit.held
            )


def _chips_of(row: MeasuredWork) -> tuple[int, ...]:
    """Return the number of chips of a collective; none for another kernel."""
    return (row.work.chips,) if isinstance(row.work, CollectiveWork) else ()
