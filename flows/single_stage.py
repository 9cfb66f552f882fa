"""One stage of a profile by its label: dispatch to another work pool, and "retry just this"."""

from __future__ import annotations

from prefect import flow

from flows.opened import gather, open_run
from flows.pipeline import build
from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tasks.runtime.prefect_task import submit_stage


@flow(name="single-stage", flow_run_name="{profile}/{stage}", retries=0, persist_result=False)
def single_stage(
    stage: str, profile: str = "tiny", overrides: list[str] | None = None, store: str | None = None, smoke: bool = False
) -> str:
    """Runs one stage whose inputs are finished; returns its artifact's URI.

    Args:
        stage: a label as `medius plan` shows it, such as distill-llama.
        profile, overrides, store, smoke: as for the whole recipe.
    """
    loaded = load_profile(profile, overrides or (), store, smoke=smoke)
    steps = build(loaded)
    chosen = [step for step in steps if step.label == stage]
    if not chosen:
        raise BadInputError(
            f"{profile} has no stage {stage!r}; its stages are {', '.join(step.label for step in steps)}"
        )
    with open_run(loaded, steps) as context:
        [reference] = gather([submit_stage(chosen[0], context, [])])
    return str(reference.uri)
