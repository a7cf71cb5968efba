"""Drafters on other chips, which another system of the scenario may name."""

from collections.abc import Mapping

from sim.inputs.errors import error_at_path
from sim.inputs.suggestions import spelling_hint
from sim.scenario.speculate import DraftSystem
from sim.scenario.system import System
from sim.units import brief

# Keys that a system which is named as a drafter may have. All others are refused.
KEPT = frozenset(DraftSystem.model_fields)
NOT_NEEDED = frozenset(("label", "colour", "model"))


def named_drafter(system: System) -> str | None:
    """Return the name of the system whose chips draft; None without drafts, or in place."""
    name = system.speculate.draft.system if system.speculate else None
    return name if isinstance(name, str) else None


def with_drafter(systems: Mapping[str, object], system: System) -> System:
    """Return a system whose named drafter is in place. The name must be checked."""
    of = system.speculate
    if of is None or (name := named_drafter(system)) is None:
        return system
    other = systems[name]
    assert isinstance(other, System)
    chips = DraftSystem.model_construct(
        other.model_fields_set & KEPT,
        **{key: getattr(other, key) for key in DraftSystem.model_fields},
    )
    draft = of.draft.model_copy(update={"system": chips.named(name)})
    return system.model_copy(update={"speculate": of.model_copy(update={"draft": draft})})


def check_drafter(systems: Mapping[str, object], path: tuple[str, ...], system: System) -> None:
    """Check the system that drafts for another one.

    path: of the keys of the other system, below `systems`.
    Raises: ValueError if there is none, or it has keys that a drafter does not simulate.
    """
    if (name := named_drafter(system)) is None:
        return
    plain = [other for other, of in systems.items() if isinstance(of, System) and of != system]
    at, of = (*path, "speculate", "draft", "system"), systems.get(name)
    if name not in plain or not isinstance(of, System):
        hint = spelling_hint(name, plain, f"there are {', '.join(plain) or 'none'}")
        reason = f"got {brief(name)!r}; expected another system with chips of one kind"
        raise error_at_path(at, name, f"{reason}; {hint}")
    if more := sorted(of.model_fields_set - KEPT - NOT_NEEDED):
        reason = f"system {name}: got {more[0]}, which is not simulated for a drafter; expected a "
        raise error_at_path(at, name, f"{reason}system without it; try a drafter in place")
    drafts = system.speculate.draft.model if system.speculate else None
    if of.model and of.model != drafts:
        reason = f"system {name}: got model {of.model.id}; expected the model that drafts; "
        raise error_at_path(at, name, f"{reason}try model: {drafts.id if drafts else ''}")
