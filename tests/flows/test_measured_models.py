"""An evaluation that names models which the recipe does not measure is refused before anything runs."""

from __future__ import annotations

import pytest

from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tests.flows.conftest import Medius


@pytest.mark.parametrize(
    ("profile", "setting", "told"),
    [
        ("micro", "parents=[qwem]", r"recipe\.parents\[0\] is 'qwem', which is not measured; name one of base, final"),
        ("micro", "reference=nobody", r"recipe\.reference is 'nobody'"),
        ("micro", "candidate=fused", r"candidate is 'fused', and what is published is 'final'"),
        ("tiny", "twins={llama: llama-reverted}", r"llama-reverted is not the direct result of a distillation"),
        ("tiny", "twins={lama: llama-twin}", r"recipe\.twins, a key, is 'lama'"),
        ("medius", "parents=[llama]", None),
    ],
)
def test_names_of_compared_models(profile: str, setting: str, told: str | None) -> None:
    loaded = load_profile(profile, [f"assessment.evaluate.recipe.{setting}"])
    if told is None:
        assert "evaluate" in {step.label for step in build(loaded)}
    else:
        with pytest.raises(BadInputError, match=told):
            build(loaded)


@pytest.mark.parametrize("command", [("plan", "tiny"), ("ablate", "recipe", "tiny")])
def test_commands_say_so_in_a_sentence(medius: Medius, command: tuple[str, ...]) -> None:
    said = medius(*command, "--set", "assessment.evaluate.recipe.reference=nobody")
    assert said.code == 2
    assert "assessment.evaluate.recipe.reference is 'nobody', which is not measured" in said.err
