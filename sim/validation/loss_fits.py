"""Fits of the numbers in scenarios/kernels to timed experts and attention.

    python -c "from sim.validation.loss_fits import *; print(*loss_lines('vllm'), sep='\\n')"

A fit minimizes ln(simulated / measured) over all rows of a generation, a precision and a backend.
Doubtful rows are left out. A number is held at its value in `HELD` and printed as assumed if it has
no effect on the rows, or a standard error above half of its value.
Experts have `passes`, and `passes_of_all`, where the rows identify them and shapes that a fit does
not see are a twentieth nearer.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sim.catalogue.engines import NO_ENGINE
from sim.catalogue.measurements import read_csv_table
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.hardware.kernels import ExpertKernel, Kernels, expert_precision
from sim.inputs.document import read_value
from sim.inputs.names import find_entry
from sim.validation.kernel_fits import SOFT_ERROR
from sim.validation.kernel_works import (
    AttentionWork,
    CollectiveWork,
    ExpertWork,
    KernelWork,
    TableRow,
    kernel_work,
)
from sim.validation.kernels import chip_of_table, engine_of_kernels
from sim.validation.points import cell_number
from sim.validation.systems import InexpressibleError
from sim.validation.validate import shipped_table

FEWEST_ROWS = 4
FEWEST_FORMS = 3  # shapes of experts, of which each can be left out
LEAST_GAIN = 0.05  # share by which more numbers must reduce the error of shapes left out
NO_EFFECT = 1e-3  # relative change of times, below which a number has no effect
TOO_VAGUE = 0.5  # standard error / value, above which a number is not identified
# Start, lowest and highest value of each number.
LOSS_RANGES = {"fixed": (10.0, 0.0, 400.0), "memory_efficiency": (0.7, 0.02, 1.0)}
LOSS_RANGES |= {"compute_efficiency": (0.4, 0.01, 2.0)}
LOSS_RANGES |= {"more_tokens": (50.0, 0.0, 2000.0), "more_positions": (300.0, 0.0, 3000.0)}
LOSS_RANGES |= {"passes": (2.0, 0.0, 20.0), "passes_of_all": (1.0, 0.0, 20.0)}
LOSS_RANGES |= {"latency": (3.0, 0.0, 60.0), "latency_per_chip": (0.3, 0.0, 20.0)}
HELD = {"fixed": 0.0, "memory_efficiency": 0.8, "compute_efficiency": 0.5}
# Half of a tile of 128 tokens, and a typical value of kernels for prompts.
HELD |= {"more_tokens": 64.0, "more_positions": 300.0, "latency": 0.0, "latency_per_chip": 0.0}
PASSES = "passes", "passes_of_all"
HELD |= dict.fromkeys(PASSES, 0.0)
# Kernels that are found by a part of their name, by file and key, whichever backend they were timed
# with. The rows of the file's own backend are of other kernels:
# * deepgemm: DeepGEMM is no backend. It was timed with TensorRT-LLM.
# * trtllm: servers of 2026 set FlashInfer's kernel (moe_backend TRTLLM). It was timed with SGLang
#   and vLLM, and TensorRT-LLM's own rows are of DeepGEMM's.
# * trtllm-1.0: FlashInfer took its CUTLASS kernel from TensorRT-LLM in 2025. It was timed in vLLM.
# * vllm: InferenceX's servers on B200 set FlashInfer's kernel with 8-bit activations. It was timed
#   with SGLang.
TIMED_ELSEWHERE = {
    ("deepgemm", "experts.blackwell.fp8_block"): "deepgemm",
    ("trtllm", "experts.blackwell.fp8_block"): "flashinfer_trtllm",
    ("trtllm-1.0", "experts.hopper.fp8_block"): "flashinfer_cutlass",
    ("vllm", "experts.blackwell.fp4_fp8"): "flashinfer_trtllm",
}
# Files that are fitted to whole experts only, because servers set their kernels for these. For one
# token DeepGEMM's takes 45 us with whole experts and 97 us with divided ones: one fit is 30 % off.
WHOLE_EXPERTS = ("deepgemm",)
# Tiles of MXFP4's kernels, to which weights are padded: of the hidden size, and of an expert's
# inner columns on a chip.
FLASHINFER_TILES, MARLIN_TILES, TRITON_TILES = (256, 256), (256, 128), (1, 64)
TILES_SOURCE = {"trtllm": "its MXFP4WeightTRTLLMGenFusedMoEMethod"}
TILES = {
    ("sglang", "experts.blackwell.fp4_bf16"): FLASHINFER_TILES,
    ("sglang", "experts.blackwell.fp4_fp8"): FLASHINFER_TILES,
    ("sglang", "experts.blackwell-rtx.fp4_bf16"): MARLIN_TILES,
    ("trtllm", "experts.blackwell.fp4_fp8"): (512, 128),
    ("vllm", "experts.ada.fp4_bf16"): MARLIN_TILES,
    ("vllm", "experts.blackwell-rtx.fp4_bf16"): MARLIN_TILES,
    ("vllm", "experts.blackwell.fp4_bf16"): FLASHINFER_TILES,
    ("vllm", "experts.blackwell.fp4_fp8"): FLASHINFER_TILES,
    ("vllm", "experts.hopper.fp4_bf16"): TRITON_TILES,
}
MICROSECONDS = ("fixed", "latency", "latency_per_chip")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeasuredWork:
    """A row: the work, the chip, the backend, the measured time [s], and the kernel's name."""

    work: KernelWork
    chip: Chip
    backend: str
    seconds: float
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class LossFit:
    """Fitted numbers by name, the names of those that were held, and the median error [%].

    points: a text with the number of rows and their chips.
    """

    numbers: Mapping[str, float]
    held: tuple[str, ...]
    error: float
    points: str = ""


def measured_works() -> Iterator[MeasuredWork]:
    """Yield the rows of the catalogue's table that are not doubtful and that can be simulated."""
    for _, row in read_csv_table(shipped_table("kernels"))[1]:
        if row["op"] != "gemm" and not row["doubt"]:
            try:
                yield _measured(row)
            except InexpressibleError:
                continue


def _measured(row: TableRow) -> MeasuredWork:
    chip = chip_of_table(row["chip"])
    assert chip  # the catalogue has every chip of its own table
    seconds = cell_number(row, "latency_us") / 1e6
    return MeasuredWork(kernel_work(row), chip, row["backend"], seconds, row["kernel"])


def loss_fits(backend: str) -> dict[str, LossFit]:
    """Return the fits of a backend's experts and attention, by key in its file."""
    groups = _groups(backend)
    return {
        key: _fit_losses(key, rows, _tiles(backend, key))
        for key, rows in sorted(groups.items())
        if len(rows) >= FEWEST_ROWS
    }


def loss_fit(backend: str, key: str) -> LossFit:
    """Return the fit of one kernel, such as 'experts.hopper.fp8'."""
    return _fit_losses(key, _groups(backend)[key], _tiles(backend, key))


def _tiles(backend: str, key: str) -> dict[str, int]:
    """Return the tiles of a kernel of experts, by key in its file; none without padding."""
    tiles = zip(("hidden_tile", "inner_tile"), TILES.get((backend, key), (1, 1)), strict=True)
    return {name: tile for name, tile in tiles if tile > 1}


def _groups(backend: str) -> dict[str, list[MeasuredWork]]:
    groups: dict[str, list[MeasuredWork]] = defaultdict(list)
    for measured in measured_works():
        work = measured.work
        divided = isinstance(work, ExpertWork) and work.shards == 1
        if isinstance(work, CollectiveWork) or (divided and backend in WHOLE_EXPERTS):
            continue
        key = _key(measured)
        elsewhere = TIMED_ELSEWHERE.get((backend, key))
        if elsewhere in measured.kernel if elsewhere else measured.backend == backend:
            groups[key].append(measured)
    return groups


def _key(measured: MeasuredWork) -> str:
    """Return the key of the numbers of a row, such as 'experts.hopper.fp8'."""
    work = measured.work
    name = f"{work.part}.{measured.chip.generation}"
    match work:
        case ExpertWork():
            return f"{name}.{expert_precision(*work.stored, work.activations)}"
        case AttentionWork(decode=True):
            return f"{name}.decode.{work.kv}"
        case AttentionWork():
            products = work.kv.bytes < 2 and work.activations.bytes < 2
            return f"{name}.prefill.{'fp8_products' if products else work.kv}"
    raise TypeError(f"{work} has no kernel")


def _names(key: str) -> tuple[str, ...]:
    """Return the names of the numbers of a kernel."""
    if key.startswith("experts"):
        return "fixed", "memory_efficiency", "compute_efficiency", "more_tokens"
    if ".decode." in key:
        latent = key.startswith("latent")
        return "fixed", "memory_efficiency", *(("compute_efficiency",) if latent else ())
    return "fixed", "compute_efficiency", "more_positions"


def _fit_losses(key: str, rows: list[MeasuredWork], tiles: Mapping[str, int]) -> LossFit:
    """Return the numbers of a kernel with the least error on its rows.  tiles: of experts."""
    engine = _with_tiles(key, tiles)
    works = [
        (row.work, row.chip) for row in rows if isinstance(row.work, ExpertWork | AttentionWork)
    ]
    bare = [work.bare(engine, chip) for work, chip in works]
    times = np.array([(*time[:3], *time.moved) for time in bare]).T
    measured = np.array([row.seconds for row in rows])
    names, forms = _names(key), np.array([row.work.form for row in rows])
    fit = _least_error(names, times, measured)
    if key.startswith("experts") and len(set(forms)) >= FEWEST_FORMS:
        error = (1 - LEAST_GAIN) * _left_out_error(names, times, measured, forms)
        for further in (PASSES[:1], PASSES):
            more = _least_error((*names, *further), times, measured)
            other = _left_out_error((*names, *further), times, measured, forms)
            if not set(PASSES) & set(more.held) and other < error:
                fit, error = more, other
    return replace(fit, points=points_text(rows))


def _simulated(numbers: Mapping[str, float], times: Floats) -> Floats:
    """Return the time of each row.  times: float[5, row], as in `BareTimes`."""
    compute, memory, unit, own, every = times
    more = numbers.get("more_tokens", 0.0) + numbers.get("more_positions", 0.0)
    computing = (compute + more * unit) / numbers.get("compute_efficiency", 1.0)
    reading = memory / numbers.get("memory_efficiency", 1.0)
    moving = numbers.get("passes", 0.0) * own + numbers.get("passes_of_all", 0.0) * every
    seconds: Floats = 1e-6 * numbers["fixed"] + np.maximum(reading, computing) + moving
    return seconds


def _least_error(names: tuple[str, ...], times: Floats, measured: Floats) -> LossFit:
    highest = {"compute_efficiency": 1.0} if "more_tokens" in names else {}
    return least_error(names, lambda numbers: _simulated(numbers, times), measured, highest)


def _left_out_error(
    names: tuple[str, ...], times: Floats, measured: Floats, forms: NDArray[np.str_]
) -> float:
    """Return the mean of |ln(simulated / measured)|, each shape by a fit to the others."""
    errors = np.zeros(len(measured))
    for form in set(forms):
        out = forms == form
        fit = _least_error(names, times[:, ~out], measured[~out])
        errors[out] = np.log(_simulated(fit.numbers, times[:, out]) / measured[out])
    return float(np.abs(errors).mean())


def _with_tiles(key: str, tiles: Mapping[str, int]) -> Engine:
    """Return an engine whose only loss is the padding of a kernel of experts to whole tiles."""
    if not tiles:
        return read_value(find_entry(NO_ENGINE, "engines"), Engine)
    _, generation, precision = key.split(".")
    kernel = ExpertKernel(fixed=0.0, memory_efficiency=1.0, compute_efficiency=1.0, **tiles)
    experts = {generation: {precision: kernel}}
    return engine_of_kernels(Kernels(otherwise=generation, experts=experts))


def points_text(rows: list[MeasuredWork]) -> str:
    """Return the number of rows and their chips: '24 times on h100-sxm'."""
    return f"{len(rows)} times on {', '.join(sorted({row.chip.id for row in rows}))}"


def least_error(
    names: tuple[str, ...],
    simulated: Callable[[Mapping[str, float]], Floats],
    measured: Floats,
    highest: Mapping[str, float] = MappingProxyType({}),
) -> LossFit:
    """Return the numbers with the least error. Numbers that the rows do not identify are held.

    highest: upper bounds in place of those of `LOSS_RANGES`.
    """
    from scipy import optimize

    held: dict[str, float] = {}
    while True:
        free = [name for name in names if name not in held]
        start, low, high = zip(*(LOSS_RANGES[name.partition(".")[0]] for name in free), strict=True)
        high = tuple(highest.get(name, most) for name, most in zip(free, high, strict=True))

        def residuals(place: Floats, free: list[str] = free) -> Floats:
            numbers = dict(zip(free, place.tolist(), strict=True)) | held
            return np.log(simulated(numbers) / measured)

        fits = [
            optimize.least_squares(
                residuals,
                np.clip(factor * np.array(start), np.array(low) + 1e-9, np.array(high) - 1e-9),
                bounds=(low, high),
                x_scale=np.array(start),
                loss="soft_l1",
                f_scale=SOFT_ERROR,
            )
            for factor in (1.0, 0.4)
        ]
        fit = min(fits, key=lambda fit: float(fit.cost))
        spare = max(1, len(measured) - len(free))
        variance = np.diag(np.linalg.pinv(fit.jac.T @ fit.jac)) * 2 * fit.cost / spare
        effects = np.abs(fit.jac).max(axis=0) * np.abs(fit.x)
        errors = np.sqrt(np.maximum(0, variance)) / np.maximum(fit.x, 1e-12)
        vagueness = np.where(effects < NO_EFFECT, np.inf, errors)
        if vagueness.max() <= TOO_VAGUE or len(free) == 1:
            break
        vaguest = free[
            int(vagueness.argmax())
        ]  # one at a time: without it others may be identified
        held[vaguest] = HELD[vaguest.partition(".")[0]]
    numbers = dict(zip(free, (float(f"{v:.3g}") for v in fit.x), strict=True)) | held
    error = 100 * float(np.median(np.abs(simulated(numbers) / measured - 1)))
    return LossFit({name: numbers[name] for name in names}, tuple(held), error)


def loss_lines(backend: str) -> Iterator[str]:
    """Yield lines of YAML: a backend's experts and attention, an empty line, and the sources."""
    sources, shown = [], ["", "", ""]
    for key, fit in loss_fits(backend).items():
        *parents, name = key.split(".")
        for depth, parent in enumerate(parents):
            if shown[: depth + 1] != parents[: depth + 1]:
                yield f"{'  ' * depth}{parent}:"
        shown = parents
        tiles = _tiles(backend, key)
        yield f"{'  ' * len(parents)}{name}: {mapping_text({**fit.numbers, **tiles})}"
        of = f"{fit.points} in kernels.csv, median error {fit.error:.1f} %"
        if tiles:
            of += f"; tiles: {TILES_SOURCE.get(backend, 'its Mxfp4MoEMethod')}"
        sources.append(f'  {key}: "fitted: to {of}"')
        sources += [
            f'  {key}.{number}: "assumed: the times do not identify it"' for number in fit.held
        ]
    yield ""
    yield from sources


def mapping_text(numbers: Mapping[str, float]) -> str:
    """Return numbers as a YAML mapping on one line."""
    texts = (
        f"{name}: {value:.3g}{' us' if name in MICROSECONDS else ''}"
        for name, value in numbers.items()
    )
    return f"{{{', '.join(texts)}}}"
