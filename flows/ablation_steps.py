"""The steps of an ablation: those of the profile up to what is varied, the candidates, and one comparison of them.

A candidate bears the label of the profile's own step, and so, under its own key, lies where the profile will look for
it: a choice that is written into the profile is made already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flows.ablation_plan import AblationPlan, part_name
from flows.dag import build, closure
from flows.profiles import Profile
from tasks.compare.stage import STAGE as COMPARE
from tasks.runtime.declare import Step


@dataclass(frozen=True)
class AblationSteps:
    """What is run."""

    candidates: Mapping[str, Step]
    others: Mapping[str, Step]
    """What is measured beside them: what they are made of."""
    comparison: Step

    @property
    def all(self) -> list[Step]:
        """Each after its inputs; the comparison is the last."""
        return closure([self.comparison])

    def name_of(self, step: Step) -> str:
        """What people call a step: a candidate by its name beside its label."""
        named = next((name for name, candidate in self.candidates.items() if candidate.key == step.key), None)
        return step.label if named is None else f"{step.label}-{named}"


def ablation_steps(plan: AblationPlan, profile: Profile) -> AblationSteps:
    """The steps of a plan that was made of this profile."""
    steps = build(profile)
    varied = next(step for step in steps if step.label == plan.varies)
    corpus = next(step for step in steps if step.stage.name == "evaluate").inputs["corpus"]
    candidates = {name: replace(varied, config=config) for name, config in plan.candidates.items()}
    others = {
        part_name(role.removeprefix("branch.")) if role.startswith("branch.") else role: step
        for role, step in varied.inputs.items()
    }
    models = {f"model.{name}": step for name, step in {**others, **candidates}.items()}
    comparison = Step(COMPARE, f"compare-{plan.name}", plan.comparison, {"corpus": corpus, **models})
    return AblationSteps(candidates, others, comparison)
