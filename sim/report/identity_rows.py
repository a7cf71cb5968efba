"""Rows that several tables share: identity, token costs, and loading time of each system.

>>> plain_cells([], lambda identity: identity.engine)
[]
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.table import Table

from sim.economics.token_price import TokenPrice
from sim.results.labels import format_number, speed_label, system_label
from sim.results.summary import EnergyUse, TokenCosts
from sim.results.system_identity import CHANGED_PARTS, Identity, SystemIdentity
from sim.units import format_quantity


def identity_rows(
    table: Table, systems: Iterable[Identity], fidelities: Sequence[str] = ()
) -> None:
    """Add the identity of each system: model, chips, engine, precisions, plan.

    A fleet's members have columns of their own. Fidelities are shown if one is not 'stage'.
    """
    identities = list(systems)
    table.add_row("model", *(marked_changed(s, s.model, "model") for s in identities))
    table.add_row("chips", *(hardware(s) for s in identities))
    table.add_row(
        "engine", *plain_cells(identities, lambda s: marked_changed(s, s.hardware[1], "engine"))
    )
    table.add_row("weights/act./KV/head", *plain_cells(identities, precisions))
    table.add_row("tensor x pipeline x replicas", *plain_cells(identities, lambda s: s.plan.text))
    plain = [s for identity in identities if (s := identity.plain)]
    if any(s.search for s in identities):
        table.add_row("  found by search", *map(found_by_search, identities))
    if any(s.search and s.search.rival for s in identities):
        table.add_row("  one system in its place", *map(rival_text, identities))
    if any(s.plan.attention_data > 1 or s.plan.expert > 1 for s in plain):
        cells = plain_cells(identities, lambda s: f"{s.plan.attention_data} / {s.plan.expert}")
        table.add_row("attention data / expert", *cells)
    if any(s.ffn for s in plain):
        table.add_row("FFN pool", *plain_cells(identities, lambda s: s.ffn.text if s.ffn else "-"))
        cells = plain_cells(identities, lambda s: str(s.ffn.micro_batches) if s.ffn else "-")
        table.add_row("micro-batches in turns", *cells)
    if any(s.speculation for s in plain):
        cells = plain_cells(identities, lambda s: s.speculation.text if s.speculation else "-")
        table.add_row("drafts of a step, its output", *cells)
    if any(s.drafter for s in plain):
        cells = plain_cells(identities, lambda s: s.drafter.text if s.drafter else "-")
        table.add_row("chips that draft", *cells)
        cells = plain_cells(identities, lambda s: s.drafter.turns if s.drafter else "-")
        table.add_row("in turns", *cells)
    if any(map(speed_label, identities)):
        table.add_row("its speeds are", *(speed_label(s) or "-" for s in identities))
    if "chip" in fidelities:
        table.add_row("fidelity", *fidelities)
    if any(len(s.memories) > 1 for s in plain):
        cells = plain_cells(identities, lambda s: f"{s.memory.weights} / {s.memory.kv}")
        table.add_row("weights in / KV in", *cells)


def precisions(system: SystemIdentity) -> str:
    """Return 'int8/int8/fp16/int8': weights, activations, KV cache, output head.

    Attention's weights are named if they differ: 'bf16, attention int4/bf16/bf16/bf16'.
    """
    formats = system.precision
    weights = formats.weights
    if formats.attention not in (None, weights):
        weights += f", attention {formats.attention}"
    return f"{weights}/{formats.activations}/{formats.kv}/{formats.head}"


def found_by_search(system: Identity) -> str:
    """Return 'capacity: 5 of 13 simulated', or '-' if the scenario has the plan."""
    search = system.search
    if not search:
        return "-"
    return f"{search.by}: {search.simulated} of {search.considered} simulated"


def rival_text(system: Identity) -> str:
    """Return the best plan of one system in the place of two pools; '-' without one."""
    rival = system.search and system.search.rival
    return rival.text if rival else "-"


def plain_cells(systems: Iterable[Identity], cell: Callable[[SystemIdentity], str]) -> list[str]:
    """Return the cells of a value that only plain systems have; '-' for fleets."""
    return [cell(system.plain) if system.plain else "-" for system in systems]


def hardware(system: Identity) -> str:
    """Return '576 x groq-lpu-v1', of a fleet '1 x lpu + 4 x h100x8'."""
    if plain := system.plain:
        return marked_changed(plain, plain.hardware[0], "chip", "cluster", "exceptions")
    return " + ".join(system.hardware)


def marked_changed(system: Identity, text: str, *parts: str) -> str:
    """Return a cell, marked if the system changes a number of a part: 'groq-lpu-v1†'."""
    return text + "†" * any(map(system.changes, parts))


def changed_numbers(systems: Mapping[str, Identity]) -> list[str]:
    """Return a sentence for each part of a system that differs from its entry."""
    # An ordered set by part. Pools with one changed chip have equal changes.
    lines: dict[str, dict[str, None]] = {}
    plain: dict[str, SystemIdentity] = {}
    for own in systems:
        for name, member in systems[own].parts(own).items():
            if member not in plain.values():  # a pool may be a system that is shown, too
                plain[name] = member
    for name, system in plain.items():
        usual = {"chip": system.chip, "engine": system.engine, "model": system.model}
        others = {"ffn": system.ffn, "speculate": system.drafter}
        for key, change in (system.changed or {}).items():
            part = next(part for part in CHANGED_PARTS if key.startswith(f"{part}."))
            kind = part.rpartition(".")[2]
            other = others.get(part.partition(".")[0])
            entries = {"chip": other.chip, "engine": other.engine} if other else usual
            entry = " ".join(filter(None, (kind, entries.get(kind))))
            head = f"† {system_label(name, system)}: {entry} with"
            was = "new" if change.was is None else f"instead of {change.was}"
            text = f"{key.removeprefix(f'{part}.')} {change.now} ({was})"
            lines.setdefault(head, {})[text] = None
    return [f"{head} {', '.join(changes)}." for head, changes in lines.items()]


def beat_rows(table: Table, systems: Sequence[Identity]) -> None:
    """Add the beat of compiled pipelines, and the tokens/s that it allows a replica."""
    all_beats = [system.plain.beat if system.plain else None for system in systems]
    if any(all_beats):
        cells = (
            f"{format_number(beat.us)} for {beat.tokens} token" + "s" * (beat.tokens > 1)
            if beat
            else "-"
            for beat in all_beats
        )
        table.add_row("beat of the pipeline, us", *cells)
        most = (format_number(beat.max_token_throughput) if beat else "-" for beat in all_beats)
        table.add_row("  most token/s, prompts counted", *most)


def loading_row(table: Table, systems: Sequence[Identity]) -> None:
    """Add the time to load the weights from the hosts, where a chip's file gives the link."""
    times = [system.plain.load_s if system.plain else None for system in systems]
    if any(times):
        cells = (format_quantity(time, "s") if time else "-" for time in times)
        table.add_row("weights from the hosts", *cells)


def cost_rows(systems: Sequence[TokenCosts]) -> Iterator[tuple[str, list[str]]]:
    """Yield rows of the known energy and cost of a token, and of the busy share behind them."""
    if any(s.energy for s in systems):
        for label, of_energy in ENERGY_ROWS.items():
            yield label, [of_energy(s.energy) if s.energy else "-" for s in systems]
    if any(s.economics for s in systems):
        for label, of_price in PRICE_ROWS.items():
            yield label, [of_price(s.economics) if s.economics else "-" for s in systems]
    if any(s.energy or s.economics for s in systems):
        shares = (s.busy_share for s in systems)
        cells = [format_number(100 * share) if share is not None else "-" for share in shares]
        yield "chips busy, % of their time", cells


ENERGY_ROWS: dict[str, Callable[[EnergyUse], str]] = {
    "J for an output token": lambda energy: format_number(energy.joules_per_token),
    "  idle / work / server / PUE": lambda energy: " / ".join(
        map(format_number, energy_by_cause(energy.joules_per_token_by_cause))
    ),
    "mean power, kW": lambda energy: format_number(energy.mean_power_w / 1000),
}
PRICE_ROWS: dict[str, Callable[[TokenPrice], str]] = {
    "$ for a million output tokens": lambda price: format_number(price.usd_per_mtok),
    "$ for a request": lambda price: format_number(price.usd_per_request),
}


def energy_by_cause(joules: Mapping[str, float]) -> tuple[float, float, float, float]:
    """Return the energy of idle chips, of work (compute, memory, links), of servers and of PUE."""
    work = joules["compute"] + joules["memory"] + joules["links"]
    return joules["idle"], work, joules["server"], joules["pue"]


# How fast weights can be read, by ways to count. A token passes the stages one after the other, so
# one stage at a time works for it. All chips work together only where the pipeline is full.
WEIGHT_BANDWIDTHS: dict[str, Callable[[SystemIdentity], float]] = {
    "a chip, as its maker counts": lambda s: float(s.weight_bandwidth.claimed),
    "a chip, by a matrix-vector multiply": lambda s: float(s.weight_bandwidth.chip),
    "a stage, for one token": lambda s: (
        float(s.weight_bandwidth.chip) * s.own_chips / s.plan.pipeline / s.plan.replicas
    ),
    "all chips, with a full pipeline": lambda s: float(s.weight_bandwidth.chip) * s.own_chips,
}
