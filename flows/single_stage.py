"""One stage of a profile by its label: dispatch to another work pool, and "retry just this"."""

from __future__ import annotations

import socket

from prefect import flow

from flows.approval_pause import approval_of_deployment
from flows.dag import build
from flows.opened import gather, open_run
from flows.profiles import load_profile
from flows.run_options import RUN, ProfileName, RunOptions, StageKey, StageLabel
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.runs import RunKind
from tasks.runtime.log_redaction import without_credentials
from tasks.runtime.prefect_task import submit_stage


@flow(name="single-stage", flow_run_name="{profile}/{stage}", retries=0, persist_result=False)
def single_stage(
    stage: StageLabel, profile: ProfileName = "tiny", options: RunOptions = RUN, key: StageKey | None = None
) -> str:
    """Runs one stage whose inputs are finished; returns its artifact's URI.

    Args:
        stage: A label as `medius plan` shows it, such as distill-llama.
        profile: A file of configs/ by its name, or the path of another.
        options: What differs from the profile; a stage of a changed recipe has other keys.
        key: The one that the stage must have here; a run that dispatches gives it.
    """
    with without_credentials():
        return _run_one(stage, profile, options, key)


def _run_one(stage: str, profile: str, options: RunOptions, key: str | None) -> str:
    loaded = load_profile(profile, options.overrides, options.store, smoke=options.smoke)
    steps = build(loaded)
    chosen = next((step for step in steps if step.label == stage), None)
    if chosen is None:
        raise BadInputError(
            f"{profile} has no stage {stage!r}; its stages are {', '.join(step.label for step in steps)}"
        )
    if key is not None and chosen.key != key:
        host = socket.gethostname()
        raise BadInputError(
            f"{stage} of {profile} has the key {chosen.key[:16]} on {host}, and the run that asks for it wants "
            f"{key[:16]}; bring checkout, packages and the files that the profile names to one state on both "
            f"machines"
        )
    kind = RunKind(smoke=options.smoke, until=stage, overrides=options.overrides)
    with open_run(loaded, steps, kind=kind, unjudged=steps if options.smoke else (), here=[chosen]) as context:
        context.approve = approval_of_deployment(loaded, steps, context, only=chosen, approved=options.approved)
        [reference] = gather([submit_stage(chosen, context, [])])
    return str(reference.uri)
