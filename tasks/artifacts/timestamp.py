"""The form in which records say when."""

from __future__ import annotations

import time


def timestamp() -> str:
    """Now, as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
