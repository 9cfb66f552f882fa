"""What an ablation varies and how it is measured, read off a profile; imports no Prefect, so it is checked before one
is started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flows.ablation_grid import AS_PROFILE, VARIED, fusion_candidates
from flows.fine_tuning import documents_of
from flows.profile_edit import Edit
from flows.profiles import Branch, Profile
from tasks.artifacts.errors import BadInputError
from tasks.compare.stage import CompareConfig, CompareRecipe
from tasks.fuse.methods import MERGE_INPUTS
from tasks.fuse.stage import BASE, FuseRecipe, Setting
from tasks.runtime.declare import StageConfig
from tasks.surgeon.stage import RevertRecipe, TransplantRecipe, unread_by

Kind = Literal["reversion", "fusion"]


@dataclass(frozen=True)
class AblationPlan:
    """One decision of a profile."""

    name: str
    """Such as reversion-llama."""
    title: str
    varies: str
    """The label of the profile's step whose config is varied."""
    candidates: Mapping[str, StageConfig]
    """Its configs, by the names of the candidates. Their gates are not judged: what would fail one is measured all the
    same, and the profile's own run judges it."""
    comparison: CompareConfig
    edits: Mapping[str, tuple[Edit, ...]]
    """What makes the profile take a candidate; nothing for the one that it has now."""


def plan_ablation(kind: Kind, profile: Profile, branch: str | None = None) -> AblationPlan:
    """The plan of one ablation; `branch` is whose reversion, where several branches have one.

    Raises:
        BadInputError: there is no such reversion, the grid does not fit the profile, or the evaluation leaves no
            held-out text to choose on.
    """
    return _reversion(profile, branch) if kind == "reversion" else _fusion(profile)


def _reversion(profile: Profile, branch: str | None) -> AblationPlan:
    reverted = [name for name, block in profile.branches.items() if block.revert is not None]
    if not reverted:
        raise BadInputError(
            f"no branch of {profile.name} has a reversion, so there is nothing to compare; give one `surgeon` and "
            f"`revert`, or ablate the fusion"
        )
    branch = reverted[0] if branch is None and len(reverted) == 1 else branch
    if branch not in reverted:
        raise BadInputError(f"name a branch of {profile.name} that is reverted with --branch: {', '.join(reverted)}")
    config = profile.branches[branch].revert
    assert config is not None
    now = config.recipe
    if not isinstance(now, RevertRecipe):
        raise BadInputError(f"branches.{branch}.revert.recipe.mode is {now.mode}; set it to revert")
    maps = {name: _map_of(name, now, profile.branches[branch]) for name in profile.ablations.reversion}
    recipes = {name: now.by(name, tokens) for name, tokens in maps.items()}
    return AblationPlan(
        name=f"reversion-{branch}",
        title=f"Reversion of the branch {branch} of {profile.name}",
        varies=f"revert-{branch}",
        candidates={name: config.model_copy(update={"recipe": recipe}) for name, recipe in recipes.items()},
        comparison=_comparison(profile, "original"),
        edits={
            name: (
                Edit(
                    f"branches.{branch}.revert.recipe",
                    {"strategy": name, **({"special_tokens": tokens} if tokens else {})},
                    remove=sorted({*unread_by(name), *(() if tokens else ("special_tokens",))}),
                ),
            )
            for name, tokens in maps.items()
            if recipes[name] != now
        },
    )


def _map_of(strategy: str, now: RevertRecipe, branch: Branch) -> dict[str, str]:
    """The special tokens of a reversion by this strategy. One that brings trained rows back takes the map of the
    transplant, if it has none of its own: without it the original's special tokens stand untrained among trained rows.
    """
    if strategy == now.strategy or (now.special_tokens and strategy != "original_rows"):
        return now.special_tokens
    forth = branch.surgeon.recipe if branch.surgeon is not None else None
    if strategy == "original_rows" or not isinstance(forth, TransplantRecipe):
        return {}
    return forth.special_tokens


def _fusion(profile: Profile) -> AblationPlan:
    config = profile.fusion.fuse
    recipes = fusion_candidates(config.recipe, profile.ablations.fusion)
    chat = config.recipe.chat_from
    return AblationPlan(
        name="fusion",
        title=f"Fusion of {profile.name}",
        varies="fuse",
        candidates={name: config.model_copy(update={"recipe": recipe}) for name, recipe in recipes.items()},
        comparison=_comparison(profile, BASE if chat == BASE else part_name(chat)),
        edits={name: _edits(recipe) for name, recipe in recipes.items() if name != AS_PROFILE},
    )


def part_name(branch: str) -> str:
    """What a branch is called beside the fusions of it."""
    return f"branch-{branch}"


def _comparison(profile: Profile, reference: str) -> CompareConfig:
    evaluated, compare = profile.assessment.evaluate.recipe, profile.ablations.compare
    recipe = CompareRecipe(
        reference=reference,
        skip_documents=documents_of(evaluated),
        max_documents=compare.max_documents,
        window_tokens=compare.window_tokens,
        num_arithmetic=compare.num_arithmetic,
        seed=compare.seed,
        template_date=evaluated.template_date,
        dtype=compare.dtype,
    )
    return CompareConfig(recipe=recipe, runtime=compare.runtime)


def _edits(recipe: FuseRecipe) -> tuple[Edit, ...]:
    """The recipe's varied fields, without those at their defaults, and what the model card says of the merge.

    A base_model stays where the method does not need one: it wants it written.
    """
    defaults = {name: field.default for name, field in FuseRecipe.model_fields.items()}
    dumped = recipe.model_dump(mode="json", include=set(VARIED))
    models = {
        name: branch.model_dump(mode="json", exclude_none=True) if branch.parameters else {}
        for name, branch in recipe.models.items()
    }
    values = {name: models if name == "models" else dumped[name] for name in VARIED}
    written = () if MERGE_INPUTS[recipe.merge_method].base == "required" else ("base_model",)
    values = {
        name: value for name, value in values.items() if name in written or (value != defaults[name] and value != {})
    }
    return (
        Edit("fusion.fuse.recipe", values, remove=[name for name in VARIED if name not in values]),
        Edit("publish.recipe", {"merge_method": _in_words(recipe)}),
    )


def _in_words(recipe: FuseRecipe) -> str:
    """Such as "ties, llama density 0.66 weight 0.5, qwen density 0.66 weight 0.5, normalize true"."""
    starts = f" from {recipe.base_model}" if recipe.base_model in recipe.models else ""
    parts = [f"{recipe.merge_method}{starts}"]
    parts += [f"{name} {_listed(branch.parameters)}" for name, branch in recipe.models.items() if branch.parameters]
    return ", ".join([*parts, *([_listed(recipe.parameters)] if recipe.parameters else [])])


def _listed(parameters: Mapping[str, Setting]) -> str:
    return " ".join(f"{name} {json.dumps(value)}" for name, value in parameters.items())
