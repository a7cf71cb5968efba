"""How numbers and speeds are written in tables and figures."""

from sim.results.system_identity import Identity, SpeedPoint


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits as a person writes it; '-' for None."""
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
    """Return what a system's speeds are where no engine was measured on its chip, else ''."""
    return ", ".join(identity.speed_labels)


def labelled(name: str, identity: Identity) -> str:
    """Return a system's name as it stands beside a speed: 'card (extrapolated)'."""
    label = speed_label(identity)
    return f"{name} ({label})" if label else name


def published_speed(point: SpeedPoint) -> str:
    """Return '241', or '250 (paced)' where the service throttled its speed."""
    return format_number(point.tokens_per_second) + (" (paced)" if point.paced else "")
