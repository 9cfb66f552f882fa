"""What is told of a step that has begun: only what the next launch can go on from counts."""

from __future__ import annotations

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_attempts, checkpoint_lists
from tasks.artifacts.store import Store
from tasks.planning.measured import training_progress
from tasks.runtime.state import step_state
from tests.runtime.errand import errand


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return Artifact(store, errand("a").directory)


def put(artifact: Artifact, name: str) -> None:
    step = int(name.split("-")[1])
    content = b'{"step": %d, "state": {"training": {"tokens": 100}}}' % step
    artifact.store.put(artifact.path(f"checkpoints/{name}"), content)


def test_a_checkpoint_without_its_list_is_none(store: Store, artifact: Artifact) -> None:
    # Every checkpoint of a training has such a file.
    put(artifact, "step-5-0badcafe/steps.json")
    assert checkpoint_lists(artifact) == []
    assert checkpoint_attempts(artifact) == {"0badcafe"}
    assert training_progress(artifact) is None
    assert step_state(errand("a"), store).state == "missing"


def test_the_newest_checkpoint_with_a_list_is_told(store: Store, artifact: Artifact) -> None:
    for name in ("step-9-deadbeef.json", "step-10-deadbeef.json", "step-12-0badcafe/steps.json"):
        put(artifact, name)
    newest = artifact.path("checkpoints/step-10-deadbeef.json")
    assert checkpoint_lists(artifact) == [(newest, 10), (artifact.path("checkpoints/step-9-deadbeef.json"), 9)]
    progress = training_progress(artifact)
    assert progress is not None
    assert progress.step == 10
    state = step_state(errand("a"), store)
    assert (state.state, state.reason) == ("started", "checkpoint at step 10, to be resumed")
