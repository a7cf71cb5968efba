"""The numbers that a system's time may depend on, by key, and costs with one of them changed.

A key names the file and the place in it: 'chip.memory.hbm.bandwidth'. Numbers of an FFN pool begin
with 'ffn.', those of the links between pools with 'transfer.', and those of a drafter on other
chips with 'drafter.'.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.causes import DRAFTER
from sim.cost.layout import Layout
from sim.cost.remote_draft import RemoteDraftCosts
from sim.cost.system_costs import SystemCosts
from sim.inputs.values import Sourced, Value
from sim.results.explanation_summary import NumberSource
from sim.scenario.placement import Placement
from sim.scenario.pools import attention_ffn
from sim.scenario.scenario import Scenario
from sim.studies.uncertain_numbers import moved
from sim.units import format_quantity

STEP = 0.1  # relative change of each number, whose effects are compared
FFN, DRAFTS = "ffn.", f"{DRAFTER}."
# Numbers of the engine that collectives depend on.
COLLECTIVE_KEYS = ("collective_latency", "collective_latency_per_chip", "collective_efficiency")
LINK_NUMBERS = (
    "latency",
    "bandwidth",
    "reduction",
    "collective_efficiency",
)  # ends of their names in a topology


@dataclass(frozen=True)
class FileNumber:
    """A number of a system's files. path: in the entry, whose `source` has it."""

    key: str
    value: float
    entry: Sourced | None
    path: str

    @property
    def source(self) -> NumberSource:
        """The value with its source, and whether it is fitted or assumed."""
        text = self.entry.source_of(self.path) if self.entry else "set by the scenario"
        text = text or "no source given"
        kind = next((kind for kind in ("fitted", "assumed") if text.startswith(kind)), "sourced")
        return NumberSource(value=_number_text(self.path, self.value), kind=kind, source=text)

    @property
    def is_of_engine(self) -> bool:
        """Whether it is a number of the software."""
        return _split(self.key)[1].startswith("engine.")

    @property
    def is_of_links(self) -> bool:
        """Whether collectives may depend on it."""
        return _split(self.key)[1].startswith(("topology.", "engine.collective_"))

    @property
    def change(self) -> float:
        """The relative change of the number; a share of at most 1 can only fall."""
        return -STEP if _is_share(self.key) else STEP


def file_numbers(
    scenario: Scenario, name: str, costs: SystemCosts, keys: Iterable[str]
) -> dict[str, FileNumber]:
    """Return the numbers with the given keys, and those of all links, by key."""
    all_keys = set(keys)
    plain, system = scenario.plain(name), attention_ffn(scenario.systems, name)
    numbers = dict(_of_pool("", plain, costs.layout, all_keys))
    if isinstance(costs, RemoteDraftCosts) and (drafter := plain.drafter):
        numbers |= _of_pool(DRAFTS, drafter, costs.remote.layout, all_keys)
        costs = costs.model
    if isinstance(costs, AttentionFfnCosts) and system:
        numbers |= _of_pool(FFN, system.ffn, costs.ffn.layout, all_keys)
        for key in ("bandwidth", "latency"):
            value = getattr(costs.transfer, key)
            numbers[f"transfer.{key}"] = FileNumber(f"transfer.{key}", value, None, key)
    return dict(sorted(numbers.items()))


def _is_share(key: str) -> bool:
    """Return whether a number is a share of at most 1."""
    return "efficiency" in key or key.endswith(("overlap", "exposed"))


def _split(key: str) -> tuple[str, str]:
    """Return the prefix of a key, which names the pool or the drafter, and the rest."""
    prefix = next((prefix for prefix in (FFN, DRAFTS) if key.startswith(prefix)), "")
    return prefix, key.removeprefix(prefix)


def _of_pool(
    prefix: str, system: Placement, layout: Layout, keys: set[str]
) -> Iterator[tuple[str, FileNumber]]:
    """Yield the numbers of the chips whose keys begin with a prefix."""
    own = {rest for begin, rest in map(_split, keys) if begin == prefix}
    own |= {f"engine.{key}" for key in COLLECTIVE_KEYS}
    own |= {f"topology.{path}" for path in _link_paths(layout.topology)}
    owner: Sourced | None = layout.chip
    if system.topology:
        owner = None
    elif system.cluster and system.cluster.topology:
        owner = system.cluster
    for key in own:
        part, _, rest = key.partition(".")
        value = _value_at(getattr(layout, part, None), rest)
        if isinstance(value, float | int):
            entry = owner if part == "topology" else getattr(layout, part)
            path = key if part == "topology" else rest
            yield prefix + key, FileNumber(prefix + key, float(value), entry, path)


def with_change(costs: SystemCosts, number: FileNumber) -> SystemCosts:
    """Return the costs with one number changed by a tenth."""
    text = repr(number.value * (1 + number.change))
    prefix, key = _split(number.key)
    if isinstance(costs, RemoteDraftCosts):
        drafter = costs.remote.layout
        if prefix == DRAFTS:
            return RemoteDraftCosts(costs.model, _moved_layout(drafter, key, text), costs.exchange)
        return RemoteDraftCosts(with_change(costs.model, number), drafter, costs.exchange)
    of_links = key.startswith("transfer.")
    layout = costs.layout if prefix or of_links else _moved_layout(costs.layout, key, text)
    if isinstance(costs, AttentionFfnCosts):
        ffn, transfer = costs.ffn.layout, costs.transfer
        ffn = _moved_layout(ffn, key, text) if prefix else ffn
        transfer = moved(transfer, key.split(".")[1:], text) if of_links else transfer
        return AttentionFfnCosts(layout, ffn, transfer, costs.micro_batches)
    return costs.on(layout)


def _moved_layout(layout: Layout, key: str, text: str) -> Layout:
    part, _, path = key.partition(".")
    return replace(layout, **{part: moved(getattr(layout, part), path.split("."), text)})


def _link_paths(value: object, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of a topology's numbers of links."""
    if isinstance(value, Value):
        pairs = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, tuple):
        pairs = [(str(number), item) for number, item in enumerate(value)]
    elif isinstance(value, Mapping):
        pairs = [*value.items()]
    else:
        names = path.split(".")[-2:]  # a share by chips is one level below its name
        if isinstance(value, float) and not {*names}.isdisjoint(LINK_NUMBERS):
            yield path
        return
    for name, item in pairs:
        yield from _link_paths(item, f"{path}.{name}" if path else name)


def _value_at(value: object, path: str) -> object:
    """Return the number at a dotted path; None if there is none."""
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, tuple):
            value = value[int(part)]
        else:
            value = getattr(value, part, None)
    return value


def _number_text(path: str, value: float) -> str:
    """Return a number with the unit of its key."""
    last = path.rpartition(".")[2]
    if last.endswith("bandwidth") or last == "weight_load":
        return format_quantity(value, "B/s")
    if path.startswith("compute."):
        return format_quantity(value, "FLOP/s")
    if _is_share(path):
        return f"{value:g}"
    return format_quantity(value, "s")
