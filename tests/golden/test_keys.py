"""No key changes without being seen in review: a changed key means that finished work is done again."""

from __future__ import annotations

import pytest

from tests.golden.keys import CONTENT, constant_content, golden, keys_of, profile_names

REWRITE = (
    'If this was meant, run "python -m tests.golden.rewrite" and commit keys.json with the change; if the meaning of a '
    "stage's output changed as well, raise `version` in its stage.py first"
)


@pytest.mark.parametrize("profile", profile_names())
def test_keys_are_those_of_the_golden_file(profile: str) -> None:
    known = golden().get(profile)
    assert known is not None, f"the profile {profile} is new. {REWRITE}"
    found = keys_of(profile)
    changed = sorted(label for label in known.keys() & found.keys() if known[label] != found[label])
    assert not changed, f"{profile}: the key changed of {', '.join(changed)}. {REWRITE}"
    gone, new = sorted(known.keys() - found.keys()), sorted(found.keys() - known.keys())
    assert gone == new == [], f"{profile}: steps gone {gone}, steps new {new}. {REWRITE}"


def test_the_golden_file_holds_no_profile_that_is_gone() -> None:
    assert set(golden()) <= set(profile_names()), REWRITE


def test_the_constant_stands_for_every_content_hash_and_only_in_its_block() -> None:
    from flows.dag import build
    from flows.profiles import load_profile

    with constant_content():
        inside = [step.config.recipe.model_dump_json() for step in build(load_profile("micro"))]
    outside = [step.config.recipe.model_dump_json() for step in build(load_profile("micro"))]
    assert sum(CONTENT in text for text in inside) == sum("content_sha256" in text for text in inside) > 0
    assert not any(CONTENT in text for text in outside)
