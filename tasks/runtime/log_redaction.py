"""Keeps credentials out of what this process says, before Prefect or anybody else sends it anywhere."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.artifacts.redact import redact

_EXCEPTIONS = logging.Formatter()


class RedactedError(Exception):
    """An exception that nobody expected, and whose own text holds a credential; its cause is the exception itself."""


@contextmanager
def without_credentials() -> Iterator[None]:
    """Around the body of a flow or task: neither its log records nor an exception that leaves it hold a credential.

    Prefect shows the exception's text as the state's message. That of a MediusError is clean from the start.

    Raises:
        RedactedError: in the place of an exception with a credential in its text.
    """
    redact_log_records()
    try:
        yield
    except Exception as error:
        said = "".join(traceback.format_exception_only(error)).strip()
        if (clean := redact(said)) == said:
            raise
        raise RedactedError(clean) from error


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
