"""What `sramsim catalog` and `sramsim show` tell: the entries, and every number of one with its source."""

from pathlib import Path

from sim.chip import Chip
from sim.engine import Engine
from sim.files import Document, Sourced, UserError, Value, find, load_text, names, read
from sim.measurements import Speeds
from sim.model import Model
from sim.units import show

KINDS = ("chips", "engines", "models", "clusters", "measurements", "scenarios")
SHOWN: dict[str, tuple[str, type[Value]]] = {
    "chip": ("chips", Chip),
    "engine": ("engines", Engine),
    "model": ("models", Model),
    "measurement": ("measurements", Speeds),
}
Fact = tuple[str, str, str]  # key, value as written, source


def titles(kind: str) -> dict[str, str]:
    """Name -> what it is, of one folder: the file's own name, else its first comment."""
    return {name: title(path) for name, path in names(kind).items()}


def title(path: Path) -> str:
    if path.suffix == ".json":
        model = read(path, Model)
        return f"{model.parameters / 1e9:.3g} B parameters, {model.num_hidden_layers} layers, {model.model_type}"
    text = load_text(path, path.name)
    named = next((line[5:].strip() for line in text.splitlines() if line.startswith("name:")), "")
    return named or text.partition("\n")[0].strip("# \r")


def facts(kind: str, name: str) -> tuple[str, list[Fact], str]:
    """Title, facts and note of one entry, by catalogue name or path.

    Raises: UserError where there is no such kind or entry, ScenarioError where the file is wrong.
    """
    if kind not in SHOWN:
        raise UserError(f"show {kind}: there is no such kind; choose of {', '.join(SHOWN)}")
    folder, cls = SHOWN[kind]
    path = find(name, folder)
    if cls is Model:
        return model_facts(path)
    document = Document(path)
    value: Value = document.value(cls)
    if isinstance(value, Speeds):
        rows = [
            (p.id, f"{p.speed:g} token/s", f"{p.model} on {p.chips or '?'} {p.chip}, {p.date}: {p.source}") for p in value.points
        ]
        return path.stem, rows, value.note
    assert isinstance(value, Sourced)
    flat = flatten({k: v for k, v in document.data.items() if k not in ("source", "name", "vendor", "note")})
    rows = [(key, text, value.source_of(key) or ("" if unsourced(text) else "no source given")) for key, text in flat]
    return f"{path.stem}: {value.name or kind}", rows, value.note.strip()


def unsourced(text: str) -> bool:
    """A word, such as a kind, needs no source; a number does."""
    return not any(character.isdigit() for character in text.partition(" ")[0])


def flatten(data: object, prefix: str = "") -> list[tuple[str, str]]:
    """'memory.sram.capacity', '230.7 MB' and so on, in the file's order."""
    if isinstance(data, dict):
        return [pair for key, value in data.items() for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, ", ".join(map(str, data)) if isinstance(data, tuple) else str(data))]


def model_facts(path: Path) -> tuple[str, list[Fact], str]:
    """What follows from a config.json, and the keys it follows from."""
    model = read(path, Model)
    given = "the config's "
    kv = model.kv_width() * model.num_hidden_layers
    computed = [
        ("parameters", f"{model.parameters / 1e9:.4g} B", f"computed from {given}sizes"),
        (
            "FLOPs per token",
            show(model.flops_per_token(), "FLOP"),
            "twice the parameters of the matrix multiplies; attention's core apart",
        ),
        ("KV per token, fp16", show(2 * kv, "B"), "2 x layers x KV heads x head size x 2 B"),
        (
            "weights, int8 with 16-bit tables",
            show(sum(b.parameters() * (2 if b.kind in ("embedding", "head") else 1) for b in model.blocks), "B"),
            "parameters x width",
        ),
    ]
    config = Document(path).data
    keys = [(key, text, "config.json") for key, text in flatten({k: config[k] for k in Model.model_fields if k in config})]
    return f"{path.stem}: {model.model_type}", computed + keys, ""
