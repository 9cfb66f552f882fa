"""The date that a chat template prints: pinned in the profile, since Llama's would print today's."""

from __future__ import annotations

from datetime import date

PINNED_CLOCK = "{% macro strftime_now(format) %}{{ date_string }}{% endmacro %}{{ '' }}"
"""Put before every template: some ask the clock without looking for date_string. The empty output keeps what follows
from losing its first line break to the macro."""

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def date_string(day: date) -> str:
    """As Llama's template writes dates, 26 Jul 2024, in English under any locale."""
    return f"{day.day:02d} {_MONTHS[day.month - 1]} {day.year}"
