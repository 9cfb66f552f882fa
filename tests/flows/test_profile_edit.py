"""Single settings of a profile's YAML are changed, and every other byte stays."""

from __future__ import annotations

import difflib

import pytest
import yaml

from flows.ablation_plan import plan_ablation
from flows.profile_edit import Edit, edited
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.errors import BadInputError
from tests.golden.keys import constant_content

TEXT = """\
# A profile.
stage:   {keep: 1}   # wide
fuse:
  recipe: &fusion  # the merge
    merge_method: ties   # for now
    # Branches in order.
    models:
      llama: {parameters: {density: 1.0, weight: 0.5}}
      qwen:
        parameters:
          weight:  # by filter
            - {filter: mlp, value: [0, 0.3]}
            - {value: 0.1}
    parameters: {normalize: true}

    # After the blank line.
    dtype: float32
last: "yes"
"""


def changed(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def test_only_the_named_settings_change() -> None:
    edit = Edit(
        "fuse.recipe",
        {"merge_method": "slerp", "models": {"llama": {}, "qwen": {"parameters": {"weight": 0.5}}}, "base_model": None},
        remove=["parameters"],
    )
    after = edited(TEXT, [edit])
    assert changed(TEXT, after) == [
        "-    merge_method: ties   # for now",
        "+    merge_method: slerp   # for now",
        "-      llama: {parameters: {density: 1.0, weight: 0.5}}",
        "+      llama: {}",
        "-          weight:  # by filter",
        "-            - {filter: mlp, value: [0, 0.3]}",
        "-            - {value: 0.1}",
        "-    parameters: {normalize: true}",
        "+          weight: 0.5",
        "+    base_model: null",
    ]
    assert edited(after, [edit]) == after


def test_values_are_written_as_yaml_reads_them_and_line_ends_stay() -> None:
    words = "slerp, t 0.3: # no comment"
    after = edited(TEXT.replace("\n", "\r\n"), [Edit("stage", {"keep": words, "more": [True, None, "no"]})])
    assert yaml.safe_load(after)["stage"] == {"keep": words, "more": [True, None, "no"]}
    assert after.count("\r\n") == after.count("\n") == TEXT.count("\n")


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("a: &x {b: 1}\nc: *x\n", "a", "an anchor shares that text"),
        ("a: &x {b: 1}\nc: *x\n", "c", "an anchor shares that text"),
        ("a: {b: &x 1}\nc: *x\n", "a", "an anchor shares that text"),
        ("a: &x {d: {b: 1}}\nc: *x\n", "a.d", "an anchor shares that text"),
        ("x: &x {b: 1}\na: {<<: *x, c: 2}\n", "x", "an anchor shares that text"),
        ("x: &x {d: {b: 1}}\na: {<<: *x}\n", "a.d", "comes from a merge key"),
        ("a: [1]\n", "a", "a is no mapping"),
        ("a: 1\n", "b.c", "b is no mapping"),
    ],
)
def test_what_is_shared_or_not_there_is_refused_with_what_to_write(text: str, place: str, why: str) -> None:
    with pytest.raises(BadInputError, match=rf"not written into {place}, as .*{why}.*write it there yourself: b: 2"):
        edited(text, [Edit(place, {"b": 2})])


def test_an_anchor_elsewhere_in_the_mapping_does_not_hinder() -> None:
    text = "a:\n  b: 1\n  d: &x {e: 2}\nf: *x\n"
    assert edited(text, [Edit("a", {"b": 2})]) == text.replace("b: 1", "b: 2")
    merged = "x: &x {b: 1}\na: {<<: *x, c: 2}\n"
    assert edited(merged, [Edit("a", {"b": 2})]) == merged.replace("c: 2", "c: 2, b: 2")


@pytest.mark.parametrize("profile", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_choices_can_be_written_into_every_profile(profile: str) -> None:
    text = (CONFIGS / f"{profile}.yaml").read_text()
    with constant_content():
        loaded = load_profile(profile, ["assessment.evaluate.recipe.max_documents=2"])
    for kind in ("reversion", "fusion"):
        # An edit reads 8 kB of YAML four times, in 0.1 s.
        for name, edits in [*plan_ablation(kind, loaded).edits.items()][::6]:
            after = edited(text, edits)
            assert [line for line in after.splitlines() if line.lstrip().startswith("#")] == [
                line for line in text.splitlines() if line.lstrip().startswith("#")
            ], name
