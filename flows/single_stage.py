"""One stage of a profile by its label: dispatch to another work pool, and "retry just this"."""

from __future__ import annotations

from prefect import flow

from flows.opened import gather, open_run
from flows.pipeline import build
from flows.profiles import load_profile
from flows.run_options import RUN, ProfileName, RunOptions, StageLabel
from tasks.artifacts.errors import BadInputError
from tasks.runtime.prefect_task import submit_stage


@flow(name="single-stage", flow_run_name="{profile}/{stage}", retries=0, persist_result=False)
def single_stage(stage: StageLabel, profile: ProfileName = "tiny", options: RunOptions = RUN) -> str:
    """Runs one stage whose inputs are finished; returns its artifact's URI.

    Args:
        stage: a label as `medius plan` shows it, such as distill-llama.
        profile: the name of a file in configs/, or a path.
        options: what differs from the profile; a stage of a changed recipe has other keys.
    """
    loaded = load_profile(profile, options.overrides, options.store, smoke=options.smoke)
    steps = build(loaded)
    chosen = [step for step in steps if step.label == stage]
    if not chosen:
        raise BadInputError(
            f"{profile} has no stage {stage!r}; its stages are {', '.join(step.label for step in steps)}"
        )
    with open_run(loaded, steps) as context:
        [reference] = gather([submit_stage(chosen[0], context, [])])
    return str(reference.uri)
