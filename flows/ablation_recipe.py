"""`medius ablate recipe`: what each part of a recipe is worth, arm by arm, under one evaluation.

An arm is a model that the recipe makes, or would make without some of its parts: without any teacher (the twins, fused
like the branches), with one teacher alone, and with all; each as it is and fine-tuned. All spend the same tokens and
steps: a teacher alone trains as long as all branches together. An arm is compared with the one of all
teachers that is fine-tuned like itself. All but the parts that only an arm has are the profile's own steps, under their
own labels and keys. Imports no Prefect, so that it is checked before one is started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.dag import build, closure
from flows.fine_tuning import documents_of
from flows.profiles import Branch, Profile
from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import ClozeTasks, EvaluationTasks, ExerciseTasks, HarnessTasks
from tasks.benchmarks.evaluation_sets import HarnessSet, set_name
from tasks.corpus.stage import DecontaminatedCorpusRecipe
from tasks.distill.stage import STAGE as DISTILL
from tasks.distill.stage import DistillConfig, DistillGates, LossRecipe
from tasks.evaluate.stage import STAGE as EVALUATE
from tasks.evaluate.stage import EvaluateConfig, EvaluateRecipe
from tasks.fuse.stage import STAGE as FUSE
from tasks.runtime.declare import Step
from tasks.sft.stage import STAGE as SFT
from tasks.sft.stage import ReplayingSftRecipe, SftConfig

CE_ONLY, ALL, TUNED = "ce-only", "all", "sft"
FULL = f"{ALL}-{TUNED}"
"""The whole recipe: all teachers, fused and fine-tuned."""


@dataclass(frozen=True)
class RecipeArms:
    """What is run."""

    reference: str
    """The arm that was not trained: the model that the profile's evaluation compares with."""
    arms: Mapping[str, Step]
    """In the order of the table; the reference first, the full recipe last."""
    evaluation: Step
    own: frozenset[str]
    """Keys of the steps that no run of the profile makes."""

    @property
    def all(self) -> list[Step]:
        """Each after its inputs; the evaluation is the last."""
        return closure([self.evaluation])

    @property
    def unjudged(self) -> list[Step]:
        """Arms are measured whatever a gate says of them: the profile's own run judges what it takes."""
        arms = {step.key for step in self.arms.values()}
        return [step for step in self.all if step.key in self.own | arms]

    def compared_with(self, arm: str) -> str | None:
        """The arm of all teachers, fine-tuned if this one is; for that arm and the reference, the full recipe."""
        if arm == FULL:
            return None
        return FULL if arm in {ALL, self.reference} or arm.endswith(f"-{TUNED}") else ALL

    def trainings(self, arm: str) -> list[Step]:
        """The trainings of the recipe that made an arm, without those of prepared models."""
        prepared = {step.key for step in closure([self.arms[self.reference]])}
        return [
            step
            for step in closure([self.arms[arm]])
            if step.stage.name in {DISTILL.name, SFT.name}
            and step.key not in prepared
            and not step.label.startswith("train-")
        ]


def plan_recipe(profile: Profile) -> RecipeArms:
    """The arms of a profile and their evaluation.

    Raises:
        BadInputError: there is nothing to measure them on but what the profile's evaluation reports.
    """
    config = _measured(profile)
    steps = {step.label: step for step in build(profile)}
    reported = steps["evaluate"]
    fused, tuned = steps["fuse"], steps["sft"]
    reference = profile.assessment.evaluate.recipe.reference
    arms = {reference: reported.inputs[f"model.{reference}"]}
    twins = {f"branch.{name}": _twin(name, branch, steps) for name, branch in profile.branches.items()}
    # A fine-tuning that replays a branch's logits learns from that teacher once more, which only its own arms may.
    taught, replay = profile.fine_tuning.sft, profile.fine_tuning.replay
    untaught = _without_replayed_teacher(taught)
    arms[CE_ONLY] = Step(FUSE, "fuse-twins", fused.config, {**fused.inputs, **twins})
    arms[f"{CE_ONLY}-{TUNED}"] = Step(SFT, "sft-twins", untaught, {**tuned.inputs, "model": arms[CE_ONLY]})
    for name in profile.branches:
        alone = _alone(name, profile.branches, steps)
        training = untaught if replay is not None and replay.branch != name else taught
        arms[f"{name}-alone"] = alone
        arms[f"{name}-alone-{TUNED}"] = Step(SFT, f"sft-{name}-alone", training, {**tuned.inputs, "model": alone})
    arms |= {ALL: fused, FULL: tuned}
    if len(arms) != 2 * len(profile.branches) + 5:
        raise BadInputError(
            f"the model {reference!r} is called like an arm of the ablation; rename it, or name another one in "
            f"assessment.evaluate.recipe.reference"
        )
    models = {f"model.{name}": step for name, step in arms.items()}
    evaluation = Step(EVALUATE, "evaluate-arms", config, {"corpus": reported.inputs["corpus"], **models})
    known = {step.key for step in steps.values()}
    own = frozenset(step.key for step in closure([evaluation]) if step.key not in known)
    return RecipeArms(reference, arms, evaluation, own)


def _twin(name: str, branch: Branch, steps: Mapping[str, Step]) -> Step:
    """A branch that learnt from the labels alone, in its own vocabulary."""
    distilled = steps[f"distill-{name}"]
    twin = Step(DISTILL, f"twin-{name}", branch.twin or _without_teacher(branch.distill), distilled.inputs)
    if branch.revert is None:
        return twin
    reverted = steps[f"revert-{name}"]
    return replace(reverted, label=f"revert-twin-{name}", inputs={**reverted.inputs, "trained": twin})


def _alone(name: str, branches: Mapping[str, Branch], steps: Mapping[str, Step]) -> Step:
    """A branch that spends what all branches of the recipe spend together, in the student's vocabulary.

    Raises:
        BadInputError: the branches' lengths cannot be added up.
    """
    branch, times = branches[name], len(branches)
    distilled, recipe = steps[f"distill-{name}"], branch.distill.recipe
    field = "steps" if recipe.steps is not None else "epochs"
    lengths = {each: getattr(block.distill.recipe, field) for each, block in branches.items()}
    if other := next((each for each, length in lengths.items() if length is None), None):
        raise BadInputError(
            f"branches.{name}.distill.recipe states {field} and branches.{other}.distill.recipe does not, so that the "
            f"arm {name}-alone cannot train as long as both; state {field} in both"
        )
    together = sum(lengths.values())
    # The same part of a longer training.
    warming = round(recipe.embedding_steps * together / lengths[name])
    longer = recipe.model_copy(update={field: together, "embedding_steps": warming})
    config = branch.distill.model_copy(update={"recipe": longer})
    label = distilled.label if times == 1 else f"{distilled.label}-alone"
    trained = Step(DISTILL, label, config, distilled.inputs)
    if branch.revert is None:
        return trained
    reverted = steps[f"revert-{name}"]
    label = reverted.label if times == 1 else f"{reverted.label}-alone"
    return replace(reverted, label=label, inputs={**reverted.inputs, "trained": trained})


def _without_teacher(config: DistillConfig) -> DistillConfig:
    recipe = config.recipe.model_copy(update={"loss": LossRecipe(forward_kl=0, ce=1)})
    return config.model_copy(update={"recipe": recipe, "gates": DistillGates(heldout_kl_must_fall=None)})


def _without_replayed_teacher(config: SftConfig) -> SftConfig:
    """What is replayed stays, on its labels alone."""
    recipe = config.recipe
    if not isinstance(recipe, ReplayingSftRecipe):
        return config
    replay = recipe.replay.model_copy(update={"forward_kl": 0.0})
    return config.model_copy(update={"recipe": recipe.model_copy(update={"replay": replay})})


def _measured(profile: Profile) -> EvaluateConfig:
    """The profile's evaluation on items and texts that it does not report."""
    reported, measure = profile.assessment.evaluate, profile.ablations.recipe
    reported_documents = documents_of(reported.recipe)
    tasks = measure.tasks or _on_dev(reported.recipe)
    if not tasks:
        raise BadInputError(
            f"the evaluation of {profile.name} has no exercises or cloze items, and its benchmarks are what it "
            f"reports; name tasks of their own in ablations.recipe.tasks to measure the arms on"
        )
    for task in tasks:
        _check_not_reported(task, reported.recipe.tasks)
        if isinstance(task, HarnessTasks):
            _check_not_learnt(task.name, profile)
    changed: dict[str, Any] = {
        "tasks": tasks,
        "candidate": FULL,
        "parents": (),
        "twins": {},
        "served": {},
        "skip_documents": reported_documents,
        "max_documents": measure.max_documents,
    }
    given = {field: getattr(reported.recipe, field) for field in type(reported.recipe).model_fields}
    return EvaluateConfig(recipe=EvaluateRecipe.model_validate({**given, **changed}), runtime=reported.runtime)


def _check_not_reported(task: EvaluationTasks, reported: Sequence[EvaluationTasks]) -> None:
    """Raises BadInputError for items that the profile's evaluation reports, or may."""
    if isinstance(task, ClozeTasks):
        # They are of the texts that are measured here, which are not the reported ones.
        return
    if isinstance(task, ExerciseTasks):
        if task.split == "test":
            raise BadInputError(
                "ablations.recipe.tasks has exercises of the split test, which is the evaluation's to report; set "
                "their split to dev"
            )
        others = (each for each in reported if isinstance(each, ExerciseTasks) and each.split == task.split)
        if both := sorted({kind for each in others for kind in each.kinds} & set(task.kinds)):
            raise BadInputError(
                f"the arms would be measured on exercises of the split {task.split} that the evaluation reports "
                f"({', '.join(both)}); give assessment.evaluate.recipe.tasks the split test"
            )
        return
    for other in reported:
        # What a group contains only the harness knows, but it names parts after their group.
        if isinstance(other, HarnessTasks) and (
            f"{task.name}_".startswith(f"{other.name}_") or f"{other.name}_".startswith(f"{task.name}_")
        ):
            raise BadInputError(
                f"ablations.recipe.tasks has {task.name}, and the evaluation reports {other.name}, which by their "
                f"names share items; name a task that is not reported"
            )


def _check_not_learnt(name: str, profile: Profile) -> None:
    """Raises BadInputError for a benchmark that is not looked for where those are that the profile reports."""
    compared: dict[str, Sequence[ExerciseTasks | HarnessSet]] = {}
    clean = profile.fine_tuning.clean
    if clean is not None and clean.recipe.decontamination is not None:
        compared["fine_tuning.clean.recipe"] = clean.recipe.evaluations
    for branch, block in profile.branches.items():
        if isinstance(block.corpus.recipe, DecontaminatedCorpusRecipe):
            where = f"branches.{branch}.corpus.recipe.decontamination"
            compared[where] = block.corpus.recipe.decontamination.evaluations
    for where, evaluations in compared.items():
        if name not in map(set_name, evaluations):
            raise BadInputError(
                f"ablations.recipe.tasks has {name}, whose items may stand in what the arms learn from; add "
                f"{{type: lm_eval, name: {name}}} to {where}.evaluations"
            )


def _on_dev(recipe: EvaluateRecipe) -> tuple[EvaluationTasks, ...]:
    """The profile's tasks that have items to choose on: exercises of the other split, cloze items of other texts."""
    return tuple(
        task.model_copy(update={"split": "dev"}) if isinstance(task, ExerciseTasks) else task
        for task in recipe.tasks
        if isinstance(task, ExerciseTasks | ClozeTasks)
    )
