"""Texts of numbers and speeds in tables and figures.

>>> format_number(1234.5)
'1,234'
"""

from sim.results.system_identity import Identity, SpeedPoint


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number as a person writes it, with this many digits; '-' for None."""
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


def speed_label(identity: Identity) -> str:
    """Return a label such as 'extrapolated'; '' if an engine was measured on the chip."""
    return ", ".join(identity.speed_labels)


def labelled(name: str, identity: Identity) -> str:
    """Return a system's name with the label of its speeds: 'card (extrapolated)'."""
    label = speed_label(identity)
    return f"{name} ({label})" if label else name


def published_speed(point: SpeedPoint) -> str:
    """Return '241', or '250 (paced)' if the service throttled its speed."""
    return format_number(point.tokens_per_second) + (" (paced)" if point.paced else "")
