"""How a checkpoint stores its numbers, as its config.json says for each weight matrix.

>>> config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
>>> read_quantization(config, "bf16").stored("mlp", "model.layers.0.mlp.up_proj")
NumberFormat(precision='int4', bits=4.15625)
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sim.inputs.errors import error_at_key, quoted_value
from sim.model.blocks import NumberFormat, Part
from sim.model.modules import NamePatterns

Config = Mapping[str, object]

WIDTHS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0}
_FP8 = NumberFormat("fp8", 8.0)
# Block scales. Sources: the FP8 checkpoints of DeepSeek and Qwen (an FP32 scale for 128 x 128
# numbers), OCP Microscaling Formats 1.0 (a byte for 32), and NVIDIA, "Introducing NVFP4" (a byte
# for 16).
FP8_BLOCKS = NumberFormat("fp8", 8.0 + 32 / 128**2)
MXFP4 = NumberFormat("fp4", 4.0 + 8 / 32)
NVFP4 = NumberFormat("fp4", 4.0 + 8 / 16)
# bitsandbytes: an FP32 scale for 64 weights. Double quantization stores it in a byte, and an
# FP32 scale for 256 of these. Source: Dettmers et al., "QLoRA", arXiv 2305.14314, section 3.
_NF4, _NF4_DOUBLE = (
    NumberFormat("int4", 4 + 32 / 64),
    NumberFormat("int4", 4 + 8 / 64 + 32 / (64 * 256)),
)


_NONE = NamePatterns()


class Group(NamedTuple):
    """Matrices that are stored alike. `names`: None means all. `parts`: empty means all."""

    stored: NumberFormat
    names: NamePatterns | None = None
    parts: tuple[Part, ...] = ()

    def holds(self, part: Part, name: str) -> bool:
        """Return whether a matrix is in the group."""
        named = self.names is None or self.names.match(name)
        return named and (not self.parts or part in self.parts)


@dataclass(frozen=True, slots=True)
class Quantization:
    """The number formats of a checkpoint.

    own: format of what is not quantized. Routers never are.
    groups: the first that holds a matrix counts.
    kept: matrices that keep `own`.
    quantizes_head, quantizes_table: whether groups hold the output head and the embedding.
    activations, kv: precisions of activations and KV cache; None: the config's own.
    targets: the key and the names of each group that lists modules by name.
    """

    own: NumberFormat
    groups: tuple[Group, ...] = ()
    kept: NamePatterns = _NONE
    quantizes_head: bool = False
    quantizes_table: bool = False
    activations: str | None = None
    kv: str | None = None
    targets: tuple[tuple[str, NamePatterns], ...] = ()

    def stored(self, part: Part, name: str) -> NumberFormat:
        """Return how the matrix of this name is stored."""
        excluded = {"router": True, "head": not self.quantizes_head}
        excluded["embedding"] = not self.quantizes_table
        if excluded.get(part) or self.kept.match(name):
            return self.own
        groups = (group.stored for group in self.groups if group.holds(part, name))
        return next(groups, self.own)


def read_quantization(config: Config | None, precision: str) -> Quantization:
    """Return the number formats that a quantization_config describes.

    `precision` is the config's own. None, or an empty config: not quantized.

    Left out: scales of tensors and channels, which are below 0.1 %.

    Raises: PydanticCustomError if the method, or a format of it, is not covered.
    """
    own = NumberFormat(precision, WIDTHS[precision])
    if not config:
        return Quantization(own)
    nested = config.get("quantization")
    if isinstance(nested, Mapping):  # hf_quant_config.json
        config = {"quant_method": "modelopt", **nested}
    method = config.get("quant_method")
    if method is None and "quant_method" not in config:
        method = "modelopt" if "quant_algo" in config else "mlx" if "bits" in config else None
    if str(method) not in _METHODS:
        covered = ", ".join(sorted(_METHODS))
        raise _refused(f"quant_method: got {quoted_value(method)}; expected {covered}")
    return _METHODS[str(method)](config, own)


def mean_format(parts: Iterable[tuple[NumberFormat, int]]) -> NumberFormat:
    """Return the format of numbers that are stored in several: the widest, and the mean bits.

    parts: formats, and how many numbers have each.
    """
    counts = list(parts)
    formats = {stored for stored, _ in counts}
    if len(formats) == 1:
        return formats.pop()
    bits = sum(stored.bits * count for stored, count in counts) / sum(n for _, n in counts)
    return NumberFormat(max(formats, key=lambda stored: stored.bits).precision, bits)


def _compressed_tensors(config: Config, own: NumberFormat) -> Quantization:
    """Read groups with targets: names first, then `Linear`, which is every matrix."""
    sparsity = str(_mapping(config, "sparsity_config").get("format", "dense"))
    if sparsity != "dense":
        raise _refused(f"sparsity_config.format: got '{sparsity}'; expected dense")
    named, classes = list[Group](), list[Group]()
    activations: list[str | None] = []
    by_group: list[tuple[str, NamePatterns]] = []
    for key, group in _mapping(config, "config_groups").items():
        if not isinstance(group, Mapping):
            raise _refused(f"config_groups.{key}: got {quoted_value(group)}; expected a mapping")
        if group.get("weights") is None:
            continue  # activations or the KV cache alone
        stored = _weights_format(_mapping(group, "weights"))
        targets = _names(group, "targets")
        other_classes = [name for name in targets if name[:1].isupper() and name != "Linear"]
        if other_classes or not targets:
            got = quoted_value(other_classes[0]) if other_classes else "none"
            reason = f"got {got}; expected Linear, or names of modules"
            raise _refused(f"config_groups.{key}.targets: {reason}")
        if "Linear" in targets:
            classes.append(Group(stored))
        else:
            by_group.append((f"config_groups.{key}.targets", _patterns(targets)))
        named.append(Group(stored, _patterns(name for name in targets if name != "Linear")))
        activations.append(_precision(group.get("input_activations"), "input_activations"))
    if not named:
        raise _refused("got no config_groups with weights; expected at least one")
    return Quantization(
        own,
        (*named, *classes),
        _patterns(_names(config, "ignore")),
        quantizes_head=True,
        activations=activations[0] if len(set(activations)) == 1 else None,
        kv=_precision(config.get("kv_cache_scheme"), "kv_cache_scheme"),
        targets=tuple(by_group),
    )


def _weights_format(weights: Config) -> NumberFormat:
    """Return the format of a compressed-tensors scheme: a scale, and a zero point, by group."""
    kind, bits = str(weights.get("type", "int")), _count(weights, "num_bits", 8)
    strategy, size = weights.get("strategy"), _count(weights, "group_size", 0)
    if strategy in ("tensor", "channel", "block", "token"):
        size = _block_size(weights, "block_structure") if strategy == "block" else 0
    narrow = (kind, bits) == ("float", 4) or weights.get("scale_dtype") == "torch.uint8"
    scale = 8.0 if narrow else 16.0
    zero = bits if kind == "int" and weights.get("symmetric") is False else 0
    return _format(kind, bits, (scale + zero) / size if size > 0 else 0.0)


def _block_size(config: Config, key: str) -> int:
    """Return the numbers of a block that share a scale; 0 without blocks."""
    block = config.get(key)
    return math.prod(block) if isinstance(block, list | tuple) else 0


def _fp8(config: Config, own: NumberFormat) -> Quantization:
    """Read weights and activations of 8 bits, as DeepSeek and Meta publish them.

    Blocks have an FP32 scale. Its bits are few, but other kernels multiply such weights.
    """
    kept = _patterns(_names(config, "modules_to_not_convert", "ignored_layers"))
    numbers = _block_size(config, "weight_block_size")
    stored = NumberFormat("fp8", 8.0 + 32 / numbers) if numbers else _FP8
    return Quantization(own, (Group(stored),), kept, activations="fp8")


def _modelopt(config: Config, own: NumberFormat) -> Quantization:
    """Read what NVIDIA's ModelOpt writes in config.json or in hf_quant_config.json."""
    algorithms = {"FP8": _FP8, "NVFP4": NVFP4, "NONE": own}  # null: the KV cache alone
    algorithm = str(config.get("quant_algo")).upper()
    if algorithm not in algorithms:
        raise _refused(f"quant_algo: got '{algorithm}'; expected FP8 or NVFP4")
    stored = algorithms[algorithm]
    cache = config.get("kv_cache_scheme", config.get("kv_cache_quant_algo"))
    return Quantization(
        own,
        (Group(stored),),
        _patterns(_names(config, "ignore", "exclude_modules")),
        activations=stored.precision,
        kv=_precision(cache, "kv_cache_quant_algo"),
    )


def _mxfp4(config: Config, own: NumberFormat) -> Quantization:
    """Read gpt-oss's format, which only experts have."""
    kept = _patterns(_names(config, "modules_to_not_convert"))
    return Quantization(own, (Group(MXFP4, parts=("experts",)),), kept)


def _awq(config: Config, own: NumberFormat) -> Quantization:
    """Read weights in groups, each with a 16-bit scale and a zero point of a weight's width."""
    bits = _count(config, "bits", _count(config, "w_bit", 4))
    stored = _grouped(bits, _count(config, "group_size", _count(config, "q_group_size", 128)))
    return Quantization(own, (Group(stored),), _patterns(_names(config, "modules_to_not_convert")))


def _gptq(config: Config, own: NumberFormat) -> Quantization:
    """Read GPTQ; `dynamic` has regular expressions of modules with other widths, or kept."""
    if config.get("bits") is None:
        raise _refused("bits: got nothing; expected the width of a weight, such as 4")
    bits, size = _count(config, "bits", 4), _count(config, "group_size", 128)
    kept = [f"re:{key[2:]}" for key in _mapping(config, "dynamic") if key.startswith("-:")]
    changes = {
        key: change
        for key, change in _mapping(config, "dynamic").items()
        if not key.startswith("-:") and isinstance(change, Mapping)
    }
    groups = [
        Group(
            _grouped(_count(change, "bits", bits), _count(change, "group_size", size)),
            _patterns([f"re:{key.removeprefix('+:')}"]),
        )
        for key, change in changes.items()
    ]
    kept += _names(config, "modules_to_not_convert")
    only = config.get("modules_in_block_to_quantize")
    chosen = (
        [str(name) for names in only for name in names] if isinstance(only, tuple | list) else []
    )
    last = Group(_grouped(bits, size), _patterns(chosen) if chosen else None)
    keys = [*(f"dynamic.{key}" for key in changes), "modules_in_block_to_quantize"]
    named = zip(keys, (group.names for group in (*groups, last)), strict=True)
    targets = tuple((key, names) for key, names in named if names)
    head = config.get("lm_head") is True
    return Quantization(own, (*groups, last), _patterns(kept), head, targets=targets)


def _bitsandbytes(config: Config, own: NumberFormat) -> Quantization:
    """Read weights that are quantized when they are loaded."""
    stored = NumberFormat("int8", 8.0)
    if config.get("load_in_4bit") or config.get("_load_in_4bit"):
        stored = _NF4_DOUBLE if config.get("bnb_4bit_use_double_quant") else _NF4
    kept = _patterns(_names(config, "llm_int8_skip_modules"))
    return Quantization(own, (Group(stored),), kept)


def _mlx(config: Config, own: NumberFormat) -> Quantization:
    """Read mlx-lm's widths of all matrices and tables; a module's own entry counts first."""
    bits, size = _count(config, "bits", 4), _count(config, "group_size", 64)
    named = [
        Group(
            _affine(_count(change, "bits", bits), _count(change, "group_size", size)),
            _patterns([key]),
        )
        for key, change in config.items()
        if isinstance(change, Mapping)
    ]
    kept = [key for key, change in config.items() if change is False and key != "mode"]
    stored = MXFP4 if config.get("mode") == "mxfp4" else _affine(bits, size)
    every = (*named, Group(stored))
    return Quantization(own, every, _patterns(kept), quantizes_head=True, quantizes_table=True)


_METHODS: dict[str, Callable[[Config, NumberFormat], Quantization]] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": _fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "mlx": _mlx,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "mxfp4": _mxfp4,
}


def _grouped(bits: int, size: int) -> NumberFormat:
    if size < 1 and size != -1:
        raise _refused(f"group_size: got {size}; expected 1 or more, or -1 for a whole row")
    return _format("int", bits, (16 + bits) / size if size > 0 else 0.0)


def _affine(bits: int, size: int) -> NumberFormat:
    """Return MLX's format: a scale and a bias of 16 bits for each group."""
    if size < 1:
        raise _refused(f"group_size: got {size}; expected 1 or more")
    return _format("int", bits, 32 / size)


def _format(kind: str, bits: int, scale: float = 0.0) -> NumberFormat:
    """Return the format of numbers of `bits` bits, with `scale` bits more for each.

    Raises: PydanticCustomError if no precision can hold it.
    """
    if kind == "float" and bits in (4, 8):
        return NumberFormat(f"fp{bits}", bits + scale)
    if kind == "int" and 2 <= bits <= 8:
        return NumberFormat("int4" if bits <= 4 else "int8", bits + scale)
    expected = "2 to 8 bits of type int, or 4 or 8 of type float"
    raise _refused(f"got {bits} bits of type {kind}; expected {expected}")


def _precision(scheme: object, key: str) -> str | None:
    """Return the precision of activations or of the KV cache; None: not quantized."""
    if scheme is None:
        return None
    if isinstance(scheme, Mapping):
        return _format(str(scheme.get("type", "int")), _count(scheme, "num_bits", 8)).precision
    names = {"FP8": "fp8", "INT8": "int8", "NVFP4": "fp4", "NONE": None}
    if str(scheme).upper() not in names:
        raise _refused(f"{key}: got '{scheme}'; expected FP8, INT8 or NVFP4")
    return names[str(scheme).upper()]


def _patterns(names: Iterable[str]) -> NamePatterns:
    """Return the patterns of names: `re:` starts a regular expression, others are globs.

    Raises: PydanticCustomError if a regular expression is wrong.
    """
    whole, parts, texts = [], [], tuple(names)
    for name in texts:
        if name.startswith("re:"):
            try:
                whole.append(re.compile(f"^(?:{name[3:]})", re.MULTILINE))
            except re.error as error:
                raise _refused(
                    f"got {quoted_value(name)}; expected a regular expression: {error}"
                ) from None
        elif name := name.strip("."):
            parts.append(re.escape(name).replace(r"\*", ".*").replace(r"\?", "."))
    if parts:
        # One expression for all names, because a file may name a thousand.
        whole.append(re.compile(rf"(?:^|\.)(?:{'|'.join(parts)})(?:\.|$)", re.MULTILINE))
    return NamePatterns(tuple(whole), texts)


def _names(config: Config, *keys: str) -> list[str]:
    """Return the texts of the first list among these keys; none without one.

    Raises: PydanticCustomError if it is no list of texts.
    """
    for key in keys:
        names = config.get(key)
        if names is None:
            continue
        if not isinstance(names, list | tuple):
            raise _refused(f"{key}: got {quoted_value(names)}; expected a list of names")
        if odd := [name for name in names if not isinstance(name, str)]:
            raise _refused(f"{key}: got {quoted_value(odd[0])}; expected names")
        return [str(name) for name in names]
    return []


def _mapping(config: Config, key: str) -> Config:
    """Return a mapping; an empty one if it is absent or null.

    Raises: PydanticCustomError if it is something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise _refused(f"{key}: got {quoted_value(value)}; expected a mapping")
    return value or {}


def _count(config: Config, key: str, default: int) -> int:
    """Return a whole number; `default` if it is absent or null.

    Raises: PydanticCustomError if it is something else.
    """
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refused(f"{key}: got {quoted_value(value)}; expected a whole number")
    return value


def _refused(reason: str) -> Exception:
    return error_at_key(("quantization_config",), f"quantization_config: {reason}")
