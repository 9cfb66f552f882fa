"""Keeps credentials out of this process's log records, before Prefect or anybody else sends them anywhere."""

from __future__ import annotations

import logging
from typing import Any

from tasks.artifacts.redact import redact

_EXCEPTIONS = logging.Formatter()


def redact_log_records() -> None:
    """From now on every record of this process is made without credentials, tracebacks included; once is enough."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def redacted(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        try:
            said = record.getMessage()
        except Exception:
            # A call whose arguments do not fit its text, or cannot be made into text, which may raise anything.
            # Elsewhere logging says so on stderr and goes on.
            record.msg, record.args = f"{record.msg} (with arguments that do not fit)", None
            said = record.getMessage()
        # Some formatters need the arguments apart, so a record that is clean stays as it is.
        if (clean := redact(said)) != said:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None:
            # Formatters take this text in the place of one of their own.
            record.exc_text = redact(_EXCEPTIONS.formatException(record.exc_info))
        return record

    redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)
