"""The recipe under Prefect: every step of the DAG in flows/dag.py as a task, from the first to the published model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow

from flows.approval_pause import approval_of_deployment
from flows.dag import build, closure
from flows.dispatch import dispatch_of_deployment, made_here
from flows.left_to_choose_on import corpora_of_choice, require_choice
from flows.opened import gather, open_run
from flows.profiles import load_profile
from flows.publishing import check_publishable
from flows.results import show_results_in_prefect
from flows.run_options import RECIPE, ProfileName, RecipeOptions
from flows.run_report import show_page_in_prefect
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.runs import RunKind
from tasks.choose.stage import STAGE as CHOOSE
from tasks.runtime.declare import Step
from tasks.runtime.log_redaction import without_credentials
from tasks.runtime.prefect_task import submit_stage


@flow(name="distillation", flow_run_name="{profile}", retries=0, persist_result=False)
def distillation(profile: ProfileName = "tiny", options: RecipeOptions = RECIPE) -> dict[str, str]:
    """Runs a profile's whole recipe, or what of it is not finished yet.

    Args:
        profile: A file of configs/ by its name, or the path of another.
        options: What differs from the profile, and how far to go.

    Returns:
        The URI of every step's artifact by label.
    """
    with without_credentials():
        return _distil(profile, options)


def _distil(profile: str, options: RecipeOptions) -> dict[str, str]:
    loaded = load_profile(profile, options.overrides, options.store, smoke=options.smoke)
    steps = build(loaded, options.until)
    if options.until is None:
        check_publishable(loaded)
    # A smoke run shares with the real one what its size does not reach, such as a transplant.
    kind = RunKind(smoke=options.smoke, until=options.until, overrides=options.overrides)
    unjudged = steps if options.smoke else ()
    with open_run(loaded, steps, kind=kind, unjudged=unjudged, here=made_here(steps)) as context:
        context.elsewhere = dispatch_of_deployment(profile, options, context.store, context.stop)
        context.approve = approval_of_deployment(loaded, steps, context, approved=options.approved)
        futures: dict[str, Any] = {}

        def submit(some: Sequence[Step]) -> None:
            for step in some:
                after = [futures[source.key] for source in step.inputs.values()]
                futures[step.key] = submit_stage(step, context, after)

        # Before a teacher runs it is known whether the corpora leave something to choose on.
        for choice in [step for step in steps if step.stage is CHOOSE]:
            if Artifact(context.store, choice.directory).manifest() is None:
                submit(closure(corpora_of_choice(choice)))
                gather(futures.values())
                require_choice(choice, context.store)
        submit([step for step in steps if step.key not in futures])
        finished = gather([futures[step.key] for step in steps])
        if options.until is None:
            show_results_in_prefect(steps, context.store)
            show_page_in_prefect(loaded, steps, context.store)
        return {step.label: ref.uri for step, ref in zip(steps, finished, strict=True)}
