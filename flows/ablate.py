"""`medius ablate`: candidates for one decision of a profile, made, measured on one set and compared.

The steps run as those of a recipe do: under Prefect, reused by their keys, resumed after an interruption. No sweep is
part of a recipe; what is chosen here is written into the profile, and the recipe takes it from there.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from prefect import flow
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flows.ablation_choice import RULE, choose
from flows.ablation_plan import AblationPlan, Kind, plan_ablation
from flows.ablation_recipe import RecipeArms, plan_recipe
from flows.ablation_recipe_report import arms_table, budget_of, made_of, pairs_of, pairs_table
from flows.ablation_recipe_report import measured_on as arms_measured_on
from flows.ablation_recipe_report import write_report as write_arms
from flows.ablation_report import caveats, measured_on, results_table, write_report
from flows.ablation_steps import ablation_steps
from flows.dag import closure
from flows.left_to_choose_on import require_texts
from flows.opened import gather, open_run
from flows.profile_edit import Edit, edited, read_text
from flows.profiles import Profile, load_profile
from tasks.artifacts.errors import BadInputError, GateFailedError
from tasks.artifacts.runs import RunKind
from tasks.artifacts.store import open_store
from tasks.compare.stage import CompareRecipe
from tasks.evaluate.stage import EvaluateRecipe
from tasks.publish.report import read_results
from tasks.publish.tables import Table
from tasks.runtime.declare import Step
from tasks.runtime.log_redaction import without_credentials
from tasks.runtime.prefect_task import submit_stage
from tasks.worker.spec import Event

FOLDER = Path("build/ablations")
RECIPE: Final = "recipe"


@flow(name="ablation", flow_run_name="{kind}/{profile}", retries=0, persist_result=False)
def ablation(
    kind: Kind | Literal["recipe"],
    profile: str = "tiny",
    branch: str | None = None,
    overrides: list[str] | None = None,
    store: str | None = None,
    smoke: bool = False,
) -> str:
    """Makes and measures the candidates of one decision, or what of it is not finished yet.

    Args:
        kind: `reversion`, `fusion`, or `recipe` for the arms of the recipe, where nothing is chosen.
        branch: whose reversion; may be left out where only one branch has any.
        profile, overrides, store, smoke: as for the whole recipe.

    Returns:
        The URI of the comparison.
    """
    with without_credentials():
        loaded = load_profile(profile, overrides or (), store, smoke=smoke)
        how = RunKind(smoke=smoke, overrides=tuple(overrides or ()))
        if kind == RECIPE:
            arms = plan_recipe(loaded)
            return _run(loaded, kind, how, arms.evaluation, arms.unjudged, lambda step: step.label)
        ablated = ablation_steps(plan_ablation(kind, loaded, branch), loaded)
        return _run(loaded, kind, how, ablated.comparison, ablated.candidates.values(), ablated.name_of)


def _run(
    profile: Profile,
    kind: str,
    how: RunKind,
    comparison: Step,
    unjudged: Iterable[Step],
    name_of: Callable[[Step], str],
) -> str:
    """Runs a comparison with all that it needs, and returns its URI.

    Args:
        unjudged: steps whose gates are off; in a smoke run all are.
        name_of: what people call a step.
    """
    steps = closure([comparison])
    # A run of its own: `medius status` of the profile is about the recipe.
    named = profile.model_copy(update={"name": f"{profile.name}-ablate-{kind}"})
    with open_run(named, steps, kind=how, unjudged=steps if how.smoke else unjudged) as context:
        watch = context.watch
        shown = {step.key: Step(step.stage, name_of(step), step.config, step.inputs) for step in steps}

        def watch_by_name(step: Step, event: Event) -> None:
            watch(shown[step.key], event)

        context.watch = watch_by_name
        futures: dict[str, Any] = {}

        def submit(some: Sequence[Step]) -> list[Any]:
            for step in some:
                after = [futures[source.key] for source in step.inputs.values()]
                futures[step.key] = submit_stage(step, context, after, name_of(step))
            return gather([futures[step.key] for step in some])

        # Before anything is trained it is known whether there is text to choose on.
        corpus = comparison.inputs["corpus"]
        submit(closure([corpus]))
        recipe = comparison.config.recipe
        assert isinstance(recipe, CompareRecipe | EvaluateRecipe)
        require_texts(corpus, recipe, context.store)
        return str(submit([step for step in steps if step.key not in futures])[-1].uri)


def report_recipe(arms: RecipeArms, profile: Profile, console: Console) -> None:
    """Prints the tables of the finished arms, and the report's path last; the profile stays as it is.

    Raises:
        BadInputError: the profile was changed meanwhile, so that nothing was measured of it.
    """
    store = open_store(profile.store)
    results = read_results(store, arms.evaluation.directory)
    if results is None:
        raise BadInputError(
            f"{profile.name} was changed while this ran, so that nothing was measured of it as it is now; run the same "
            f"command again: what did not change is reused"
        )
    budgets = {name: budget_of(arms, name, store) for name in arms.arms}
    against = {name: arms.compared_with(name) for name in arms.arms}
    differences = pairs_table(budgets, against, pairs_of(arms, store))
    console.print(_shown(arms_table(results, budgets)))
    console.print(_shown(differences))
    told = arms_measured_on(results, budgets, against)
    for line in [told, *made_of(budgets)]:
        console.print(line, soft_wrap=True, markup=False)
    title = f"The recipe of {profile.name}, arm by arm"
    report = write_arms(FOLDER / f"{profile.name}-{RECIPE}", title, results, budgets, differences, told)
    console.print(str(report), soft_wrap=True, markup=False)


def report_ablation(plan: AblationPlan, profile: Profile, path: Path, console: Console, *, write: bool) -> None:
    """Prints the table of a finished ablation and the choice, settles that, and prints the report's path last.

    Args:
        plan, profile: of the file as it stands after the work, which may have taken hours.
        path: of the profile's YAML.
        write: whether the choice is written there, or only shown.

    Raises:
        GateFailedError: no candidate can be used.
        BadInputError: the profile was changed meanwhile, so that nothing was measured of it or the choice cannot be
            written into it.
    """
    ablated = ablation_steps(plan, profile)
    results = read_results(open_store(profile.store), ablated.comparison.directory)
    if results is None:
        raise BadInputError(
            f"{path} was changed while this ran, so that nothing was measured of it as it is now, and it stays so; run "
            f"the same command again: what did not change is reused"
        )
    if all(model["fault"] is not None for model in results["models"].values()):
        faults = "; ".join(f"{name}: {model['fault']}" for name, model in results["models"].items())
        raise GateFailedError(
            f"no model gives usable numbers, so {path} stays as it is ({faults}); see the trainings before them"
        )
    others, candidates = list(ablated.others), list(ablated.candidates)
    choice = choose(results, candidates)
    console.print(_shown(results_table(results, others, candidates, choice)))
    console.print(measured_on(results), soft_wrap=True)
    console.print(f"Rule: {RULE}.", soft_wrap=True)
    report = write_report(FOLDER / f"{profile.name}-{plan.name}", plan.title, results, others, candidates, choice)
    if choice.taken is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in choice.reasons.items())
        raise GateFailedError(f"no candidate can be used, so {path} stays as it is ({why}); see {report}")
    console.print(f"Chosen: {choice.taken}.{caveats(choice)}", soft_wrap=True)
    _settle(plan.edits.get(choice.taken), path, console, write=write)
    console.print(str(report), soft_wrap=True, markup=False)


def _shown(content: Table) -> RichTable:
    table = RichTable()
    for column in content.columns:
        table.add_column(column, no_wrap=column in {"arm", "bits per byte"}, overflow="fold")
    for row in content.rows:
        # A template's own message may have brackets.
        table.add_row(*(escape(cell) for cell in row))
    return table


def _settle(edits: Sequence[Edit] | None, path: Path, console: Console, *, write: bool) -> None:
    """Writes the edits into the profile as it stands now, and shows what changes; or only shows it."""
    if edits is None:
        console.print(f"{path} has it already", soft_wrap=True, markup=False)
        return
    before = read_text(path)
    after = edited(before, edits)
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), n=1, lineterm=""):
        console.print(line, soft_wrap=True, markup=False)
    if write:
        # Whole or not at all: a full disk must not leave half of a profile.
        target = path.resolve()
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        draft.write_bytes(after.encode("utf-8"))
        shutil.copymode(target, draft)
        draft.replace(target)
    console.print(f"{path} {'has it now' if write else 'was left as it is'}", soft_wrap=True, markup=False)
