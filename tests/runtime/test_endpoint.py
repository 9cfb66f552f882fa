"""What a message may say of a server."""

from __future__ import annotations

from tasks.runtime.endpoint import QUOTED_CHARS, is_retried, quoted


def test_a_secret_is_taken_out_before_a_quote_is_cut() -> None:
    key = "s3cr3t-of-the-server"
    said = quoted("x" * (QUOTED_CHARS - 4) + key, [None, key])
    assert said == "x" * (QUOTED_CHARS - 4) + "[key"
    assert quoted(f"no  Bearer\n{key}", [key]) == "no Bearer [key]"
    assert quoted("none", []) == "none"


def test_what_may_pass_is_tried_again() -> None:
    assert [status for status in (200, 400, 401, 404, 408, 409, 422, 429, 500, 503, 529) if is_retried(status)] == [
        408, 409, 429, 500, 503, 529,
    ]  # fmt: skip
