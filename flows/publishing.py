"""Whether what a run will make can be published, told before anything runs."""

from __future__ import annotations

from flows.dag import build
from flows.profiles import Profile
from tasks.publish.stage import PublishConfig


def check_publishable(profile: Profile) -> None:
    """Refuses a profile whose result the stage publish would refuse for its licences, hours later.

    Raises:
        BadInputError: a licence is not known, two of them conflict, or one wants another name of the model.
    """
    published = next(step for step in build(profile) if step.stage.name == "publish")
    assert isinstance(published.config, PublishConfig)
    published.config.check(published.inputs["model"])
