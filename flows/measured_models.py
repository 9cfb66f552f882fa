"""Whether an evaluation compares models that the recipe has: known before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.artifacts.errors import BadInputError
from tasks.distill.stage import STAGE as DISTILL
from tasks.evaluate.served import check_served
from tasks.evaluate.stage import EvaluateRecipe
from tasks.runtime.declare import Step


def require_measured(recipe: EvaluateRecipe, measured: Mapping[str, Step], published: Step) -> None:
    """Checks every name in an evaluation's recipe.

    Args:
        recipe: the evaluation's.
        measured: the models that it gets, by the names they have there.
        published: the model that is published, which the candidate has to be.

    Raises:
        BadInputError: a name is none of `measured`, or a served model has one of them; the candidate is another model
            than the published one; twins are not trained by distillation.
    """
    where = "assessment.evaluate.recipe"
    named = {
        f"{where}.reference": recipe.reference,
        f"{where}.candidate": recipe.candidate,
        **{f"{where}.parents[{i}]": name for i, name in enumerate(recipe.parents)},
    }
    for branch, twin in recipe.twins.items():
        named |= {f"{where}.twins, a key,": branch, f"{where}.twins.{branch}": twin}
    for place, name in named.items():
        if name not in measured:
            raise BadInputError(
                f"{place} is {name!r}, which is not measured; name one of {', '.join(sorted(measured))}"
            )
    check_served(recipe.served, measured)
    for branch, twin in recipe.twins.items():
        if undirect := [name for name in (branch, twin) if measured[name].stage is not DISTILL]:
            raise BadInputError(
                f"{where}.twins compares {branch} with {twin}, and {undirect[0]} is not the direct result of a "
                f"distillation; name the branch before its reversion, and its twin"
            )
    if measured[recipe.candidate].key != published.key:
        raise BadInputError(
            f"{where}.candidate is {recipe.candidate!r}, and what is published is 'final'; a model that is not "
            f"measured cannot be published"
        )
