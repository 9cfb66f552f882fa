"""Numbers as people read them: amounts, bytes, times, money."""

from __future__ import annotations

UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
MINUTE, HOUR = 60.0, 3600.0


def figure(value: float) -> str:
    """1.234e+09 where a number is large, else with thousands."""
    return f"{value:.4g}" if value >= 1e7 else f"{value:,.0f}"


def byte_size(value: float) -> str:
    """1.23 TB and the like, in powers of 1000; a part of a byte is none."""
    for unit, name in UNITS:
        # What three digits would round up to 1000 of a unit is one of the next.
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} B"


def span(seconds: float) -> str:
    """4.1 s, 53 min, 29.6 h, 1,234 h."""
    if seconds < 0.9995 * MINUTE:
        return f"{seconds:.1f} s"
    if seconds < 59.5 * MINUTE:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:,.1f} h" if seconds < 1000 * HOUR else f"{seconds / HOUR:,.0f} h"


def money(usd: float) -> str:
    """Of an amount in USD, without its sign."""
    if 0 < usd < 0.01:
        return "<0.01"
    return f"{usd:,.0f}" if usd >= 10 else f"{usd:.2f}"
