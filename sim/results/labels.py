"""How numbers and speeds are written in tables and figures."""

from collections.abc import Mapping
from typing import Any


def format_number(value: float | None, digits: int = 3) -> str:
    """A number as a person writes it, '-' for none."""
    if value is None:
        return "-"
    if abs(value) >= 1e12:
        return f"{value:.{digits}g}"
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return (
            f"{value:,.0f}"
            if isinstance(value, int) or abs(value) >= 10**digits
            else f"{value:.{digits}g}"
        )
    return f"{value:#.{digits}g}" if value else "0"


def speed_label(system: Mapping[str, Any]) -> str:
    """Return what a system's speeds are where no engine was measured on its chip; of a fleet what its members' are."""
    labels = (member.get("speed_label") for member in system.get("members", {"": system}).values())
    return ", ".join(dict.fromkeys(filter(None, labels)))


def labelled(name: str, system: Mapping[str, Any]) -> str:
    """Return a system's name as it stands beside a speed: 'card (extrapolated)'."""
    label = speed_label(system)
    return f"{name} ({label})" if label else name


def published_speed(point: Mapping[str, Any]) -> str:
    """Return '241', or '250 (paced)' where the service throttled its speed; results of earlier versions lack the mark."""
    return format_number(point["tokens_per_second"]) + (" (paced)" if point.get("paced") else "")
