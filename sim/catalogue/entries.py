"""The entries of the catalogue, and every number of an entry with its source."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from sim.catalogue.measurements import (
    NetworkMeasurements,
    PublishedSpeeds,
    Rules,
    SpeculationMeasurements,
    StepMeasurements,
)
from sim.cost.acceptance import AcceptanceCurve
from sim.hardware.chip import Chip, Cluster
from sim.hardware.engine import Engine
from sim.hardware.kernels import Kernels
from sim.inputs.document import read_document, read_value
from sim.inputs.errors import UserError
from sim.inputs.files import load_text
from sim.inputs.key_paths import REFERENCE_KEYS, JsonValue
from sim.inputs.names import catalogue_names, find_entry
from sim.inputs.overrides import ABOUT, base_name, overridden
from sim.inputs.suggestions import unknown_name
from sim.inputs.values import Entry, Sourced, Value
from sim.model.class_defaults import class_defaults, defaults_source
from sim.model.families import FAMILIES
from sim.model.spellings import SPELLINGS, TEXT_TYPES, text_part
from sim.model.transformer import Model
from sim.reliability.failures import Faults
from sim.reliability.link_errors import LinkErrors
from sim.results.sources import EntrySources, ListedEntry, ListedMemory
from sim.units import brief, format_quantity

CATALOGUE_KINDS = (
    "acceptance",
    "chips",
    "engines",
    "kernels",
    "models",
    "families",
    "clusters",
    "measurements",
    "scenarios",
)
ENTRY_KINDS: dict[str, tuple[str, type[Value]]] = {
    "chip": ("chips", Chip),
    "engine": ("engines", Engine),
    "kernels": ("kernels", Kernels),
    "model": ("models", Model),
    "cluster": ("clusters", Cluster),
    "acceptance": ("acceptance", AcceptanceCurve),
    "measurement": ("measurements", PublishedSpeeds),
}
IN_PLACE: dict[str, type[Value]] = {
    "faults": Faults,
    "link_errors": LinkErrors,
}  # what scenarios write, with sources


def listed_entries(kind: str) -> tuple[ListedEntry, ...]:
    """Return the entries of a folder, with memories of chips and parameters of models.

    families: each model_type that is covered.
    """
    if kind == "families":
        wrappers = (
            ListedEntry(name=name, title=f"its text model, {text}")
            for name, text in TEXT_TYPES.items()
        )
        sources = {name: f"defaults of {defaults_source(name)}" for name in FAMILIES}
        own = (ListedEntry(name=name, title=source) for name, source in sources.items())
        return tuple(sorted((*own, *wrappers), key=lambda entry: entry.name))
    return tuple(_listed_entry(kind, name, path) for name, path in catalogue_names(kind).items())


def _listed_entry(kind: str, name: str, path: Path) -> ListedEntry:
    memory = parameters = None
    if kind == "chips":
        memory = {
            key: ListedMemory(capacity=part.capacity, bandwidth=part.bandwidth)
            for key, part in read_value(path, Chip).memory.items()
        }
    if kind == "models":
        parameters = read_value(path, Model).parameters
    return ListedEntry(name=name, title=entry_title(path), memory=memory, parameters=parameters)


def entry_title(path: Path) -> str:
    """Return the title of an entry: the file's `name`, else its first comment."""
    if path.suffix == ".json":
        model = read_value(path, Model)
        layers = f"{model.num_hidden_layers} layers, {model.model_type}"
        return f"{model.parameters / 1e9:.3g} B parameters, {layers}"
    text = load_text(path, path.name)
    named = next((line[5:].strip() for line in text.splitlines() if line.startswith("name:")), "")
    return named or text.partition("\n")[0].strip("# \r")


def entry_facts(kind: str, name: str) -> EntrySources:
    """Return every number of an entry with its source, by catalogue name or path.

    Raises: UserError if there is no such kind or entry, ScenarioError if the file is wrong.
    """
    if kind not in ENTRY_KINDS:
        raise unknown_name("show", kind, (*ENTRY_KINDS, "scenario"))
    folder, cls = ENTRY_KINDS[kind]
    document = read_document(find_entry(name, folder))
    if cls is PublishedSpeeds and "systems" in document.data:
        return network_facts(read_value(document.path, NetworkMeasurements))
    if cls is PublishedSpeeds and "rules" in document.data:
        return rules_facts(read_value(document.path, Rules))
    if cls is PublishedSpeeds and "against" in document.data:
        return speedup_facts(read_value(document.path, SpeculationMeasurements))
    if cls is PublishedSpeeds and "steps" in document.data:
        return step_facts(read_value(document.path, StepMeasurements))
    return value_facts(document.name, document.data, read_value(document.path, cls))


def value_facts(name: str, data: Mapping[str, JsonValue], value: Value) -> EntrySources:
    """Return every number of a value with its source, in the words of its file or scenario."""
    if isinstance(value, Model):
        return model_facts(name, data, value)
    if isinstance(value, PublishedSpeeds):
        rows = tuple(
            (
                p.id,
                f"{p.speed:g} token/s{' (paced)' if p.paced else ''}",
                f"{p.model} on {p.chips or '?'} {p.chip}, {p.date}: {p.source}",
            )
            for p in value.points
        )
        return EntrySources(name, rows, value.note)
    assert isinstance(value, Sourced)
    flat = flatten({key: base_name(part) for key, part in data.items() if key not in ABOUT})
    rows = tuple(
        (
            key,
            f"{text} ({' to '.join(map(str, value.range[key]))})" if key in value.range else text,
            value.source_of(key) or ("" if needs_no_source(text) else "no source given"),
        )
        for key, text in flat
    )
    fitted = (
        f"Fitted: {value.fit.found}."
        if isinstance(value, Engine) and value.fit and value.fit.found
        else ""
    )
    fitted += f" Changed since: {', '.join(value.changed)}." if fitted and value.changed else ""
    return EntrySources(
        f"{name}: {value.name or value.noun()}",
        rows,
        " ".join(filter(None, (value.note.strip(), fitted))),
    )


def scenario_sources(data: Mapping[str, JsonValue], where: str = "") -> dict[str, EntrySources]:
    """Return the facts of each part that a scenario names or writes in place, for a result.

    Parts are models, chips, clusters, engines, faults and link errors.
    """
    entries: dict[str, EntrySources] = {}
    for at, kind, part in named_parts(data, where):
        try:
            entries |= part_facts(at, kind, part)
        except (UserError, ValidationError, PydanticCustomError):
            if not at.startswith("sweep."):
                raise  # in a sweep, the point itself reports the error
    return entries


def part_facts(
    where: str, kind: str, part: str | Mapping[str, JsonValue]
) -> dict[str, EntrySources]:
    """Return the facts of one part of a scenario, and those of the chip of a cluster."""
    folder, cls = ENTRY_KINDS[kind] if kind in ENTRY_KINDS else ("", IN_PLACE[kind])
    if isinstance(part, str):
        document = read_document(find_entry(part, folder))
        key, name, data, value = (
            f"{kind} {part}",
            document.name,
            document.data,
            read_value(document.path, cls),
        )
    elif "like" in part and issubclass(cls, Entry):
        data, like = overridden(part, folder, cls, cls.model_validate)
        key, name, value = (
            f"{kind} {where}",
            f"{like.id}, changed" if like.changed else like.id,
            like,
        )
    else:
        key, name, data, value = f"{kind} {where}", where, dict(part), cls.model_validate(part)
    facts = value_facts(name, data, value)
    inner = (
        scenario_sources(data, "" if isinstance(part, str) else where) if kind == "cluster" else {}
    )  # its chip is another file
    return inner | {key: facts}


def named_parts(data: object, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield key, kind and content of each part that a scenario or its sweep has."""
    pairs = (
        data.items()
        if isinstance(data, Mapping)
        else enumerate(data)
        if isinstance(data, tuple)
        else ()
    )
    for key, value in pairs:
        path = f"{where}.{key}" if where else str(key)
        *above, last = path.split(".")  # keys of a sweep have dots: {systems.lpu.engine: [ideal]}
        kind = (
            last if last != "like" else above[-1] if above and above[-1] in ENTRY_KINDS else "chip"
        )  # {chip: 12, like: my-chip.yaml}
        if kind not in (*REFERENCE_KEYS, *IN_PLACE, "acceptance") or where == "systems":
            yield from named_parts(value, path)
            continue
        several = (
            [(f"{path}.{place}", part) for place, part in enumerate(value)]
            if isinstance(value, tuple)
            else [(path, value)]
        )
        yield from ((at, kind, part) for at, part in several if isinstance(part, str | Mapping))


def needs_no_source(text: str) -> bool:
    """Return whether a text is a word, such as a kind; only numbers need a source."""
    return not text[:1].isdigit()


def flatten(data: object, prefix: str = "") -> list[tuple[str, str]]:
    """Return pairs of dotted key and text, as ('memory.sram.capacity', '230.7 MB').

    The order is that of the file.
    """
    if isinstance(data, tuple) and any(isinstance(part, dict) for part in data):
        data = dict(enumerate(data))
    if isinstance(data, dict):
        return [
            pair
            for key, value in data.items()
            for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, ", ".join(map(str, data)) if isinstance(data, tuple) else str(data))]


def rules_facts(rules: Rules) -> EntrySources:
    """Return every rule with its source."""
    rows = []
    for rule in rules.rules:
        said = [f"{key} {value}" for key, value in rule.system.items()]
        said += [f"not simulated: {rule.exclude}"] if rule.exclude else []
        said += [text for text in (rule.assumed, rule.remark) if text] + (
            [f"host {rule.host}"] if rule.host else []
        )
        said += [f"a bound: {rule.bound}"] if rule.bound else []
        said += ["a place less than users"] if rule.one_less else []
        said += [] if rule.prefill else ["without the prefill"]
        when = "; ".join(f"{key} {', '.join(texts)}" for key, texts in rule.when.items())
        rows.append((when, "; ".join(said), rule.source))
    return EntrySources(rules.id, tuple(rows), rules.note.strip())


def speedup_facts(table: SpeculationMeasurements) -> EntrySources:
    """Return every published speed-up with its source."""
    rows = [
        (f"{point.id}-{users}", f"{speedup:g}", point.source)
        for point in table.points
        for users, speedup in zip(point.users, point.speedups, strict=True)
    ]
    return EntrySources(table.id, tuple(rows), table.note.strip())


def step_facts(table: StepMeasurements) -> EntrySources:
    """Return every measured step with its source."""
    rows = [
        (f"{point.id}-{chips}", f"{1000 * time:.4g} ms", point.source)
        for point in table.points
        for chips, time in zip(point.chips, point.times, strict=True)
    ]
    return EntrySources(table.id, tuple(rows), table.note.strip())


def network_facts(network: NetworkMeasurements) -> EntrySources:
    """Return every network measurement with its source, and the sources of software."""
    figures = [
        (
            point.id,
            f"{point.latency_us:g} us" if point.latency_us else f"{point.bandwidth_GBps:g} GB/s",
            f"{point.system}, {point.operation}: {point.source_url}",
        )
        for point in network.points
    ]
    parts = {
        f"{kind}.{name}": part
        for kind in ("systems", "software")
        for name, part in getattr(network, kind).items()
    }
    sources = [
        (f"{name}.{key}", "", text)
        for name, part in parts.items()
        for key, text in part.source.items()
    ]
    return EntrySources(network.id, (*figures, *sources), network.note.strip())


def model_facts(name: str, config: Mapping[str, JsonValue], model: Model) -> EntrySources:
    """Return numbers of a model that are computed from config.json, and the keys of that."""
    origin = "the config's "
    kv = model.kv_per_token()
    computed = [
        ("parameters", f"{model.parameters / 1e9:.4g} B", f"computed from {origin}sizes"),
        (
            "active parameters",
            f"{model.active_parameters / 1e9:.4g} B",
            "those that one token meets; with the head, without the table",
        ),
        (
            "FLOPs per token",
            format_quantity(model.flops_per_token(), "FLOP"),
            "twice the parameters of the matrix multiplies; attention's core apart",
        ),
        (
            "KV per token, fp16",
            format_quantity(2 * kv, "B"),
            "2 x layers x KV heads x head size x 2 B",
        ),
        *_state_rows(model),
        *weight_rows(model),
    ]
    flat = {**config, **(text_part(config) or {})}
    known = [
        spelt
        for field in Model.model_fields
        if field != "aliases"
        for spelt in (field, *SPELLINGS.get(field, ()))
    ]
    present = Model.spelled(config)
    absent = [
        (key, str(value), f"config.json leaves it out: the default of {model.model_type}'s class")
        for key, value in class_defaults(model.model_type).items()
        if key in Model.model_fields and key not in present
    ]
    was = {
        key: f"changed: set by the scenario (config.json: {change[0] or 'none'})"
        for key, change in model.changed.items()
    }
    if present.get("tie_word_embeddings") and not model.family.can_tie:
        was["tie_word_embeddings"] = f"config.json; without effect in {model.model_type}'s class"
    keys = [
        (key, brief(text), was.get(key, "config.json"))
        for key, text in flatten({k: flat[k] for k in known if k in flat})
    ]
    return EntrySources(f"{name}: {model.model_type}", (*computed, *keys, *absent))


def _state_rows(model: Model) -> Iterator[tuple[str, str, str]]:
    """Yield the states of fixed size of a sequence, if the model has some."""
    if nbytes := model.state_bytes():
        text = "layers with a recurrence, at any length: states, and inputs of convolutions"
        yield "state per sequence", format_quantity(nbytes, "B"), text


def weight_rows(model: Model) -> Iterator[tuple[str, str, str]]:
    """Yield the bytes of the weights: all, and of each part by number format.

    Left out: norms and biases. A table that embedding and head share counts once.
    """
    parts = [r for r in model.weight_map if not (model.tie_word_embeddings and r.part == "head")]
    total = format_quantity(sum(row.nbytes for row in parts), "B")
    yield "weights", total, "as the checkpoint stores them, with block scales"
    for row in parts:
        label, counted = f"  {row.part}", f"{row.parameters / 1e9:.4g} B parameters"
        text = f"{row.stored.precision}, {row.stored.bits:.4g} bits"
        yield label, format_quantity(row.nbytes, "B"), f"{text}, {counted}"
