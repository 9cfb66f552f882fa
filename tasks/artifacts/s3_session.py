"""The session that S3 clients are made from, with a quicker reader of times than botocore's own."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from aiobotocore.session import AioSession


def answer_time(text: str) -> datetime:
    """A time of an answer: ISO 8601 in bodies, RFC 9110 in headers. What is neither is left to botocore.

    Its own parser takes 0.2 ms for each, which is two thirds of the work of a listing.
    """
    from botocore.utils import parse_timestamp

    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(TypeError, ValueError):
            found = parse(text)
            if found.tzinfo is not None:
                return found
    return cast("datetime", parse_timestamp(text))


def quick_session() -> AioSession:
    """A session whose clients read the times of answers by `answer_time`."""
    from aiobotocore.session import AioSession

    session = AioSession()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=answer_time)
    return session
