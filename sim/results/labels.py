"""Texts of numbers and speeds in tables and figures.

>>> format_number(1234.5)
'1,234'
"""

from collections.abc import Mapping

from sim.results.system_identity import Identity, SpeedPoint


def format_number(value: float | None, digits: int = 3, trailing_zeros: bool = True) -> str:
    """Return a number as a person writes it, with this many digits; '-' for None.

    Thousands have commas. Whole numbers have all their digits.
    """
    if value is None:
        return "-"
    if abs(value) >= 1e12:
        return f"{value:.{digits}g}"
    # Round first: 99.96 has three digits before the point, and 999.6 has four.
    if isinstance(value, int) or abs(float(f"{value:.{digits}g}")) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if not value:
        return "0"
    return f"{value:#.{digits}g}" if trailing_zeros else f"{value:.{digits}g}"


def trimmed_number(value: float) -> str:
    """Return a number with up to three digits: '2', not '2.00'.

    Figures use it, because the ticks of an axis are round numbers.
    """
    return format_number(value, trailing_zeros=False)


def percent_text(share: float, digits: int = 0) -> str:
    """Return a share in percent: '5 %' for 0.05, or with digits after the point '4.8 %'."""
    return f"{100 * share:.{digits}f} %"


def sortable_text(value: object) -> str:
    """Return a number with six digits and without commas, a text as it is, '-' for None.

    The page uses it for tables that a reader sorts: its script reads no commas.
    """
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def speed_label(identity: Identity) -> str:
    """Return a label such as 'extrapolated'; '' if an engine was measured on the chip."""
    return ", ".join(identity.speed_labels)


def system_label(name: str, identity: Identity) -> str:
    """Return the label of a system; its name without one."""
    return identity.label or name


def system_labels(identities: Mapping[str, Identity]) -> dict[str, str]:
    """Return the label of each system by name."""
    return {name: system_label(name, identity) for name, identity in identities.items()}


def labelled(name: str, identity: Identity) -> str:
    """Return a system's label with that of its speeds: 'card (extrapolated)'."""
    label = system_label(name, identity)
    speed = speed_label(identity)
    return f"{label} ({speed})" if speed else label


def published_speed(point: SpeedPoint) -> str:
    """Return '241', or '250 (paced)' if the service throttled its speed."""
    return format_number(point.tokens_per_second) + (" (paced)" if point.paced else "")
