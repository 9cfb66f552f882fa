"""What a deployment asks for: the form of the dashboard, and what the server refuses before a run exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, ValidationError, WithJsonSchema

from flows.profiles import CONFIGS
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen

PROFILES = tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
ProfileName = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(PROFILES), "title": "A file of configs/"},
                {"type": "string", "pattern": r"\.ya?ml$", "title": "The path of a YAML file"},
            ]
        }
    ),
]
"""As on the command line; whether there is such a file is found when it is read."""
StageLabel = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][A-Za-z0-9._-]*$",
        description='A label as "medius plan" shows it.',
        examples=["distill-llama"],
    ),
]

StageKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="The stage is refused where it has another.")]

StoreUri = Annotated[
    str,
    Field(
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[\w.=@+-]+)*/?|(file://)?[^:]+)$",
        title="s3://bucket/prefix or a directory",
    ),
]
UsualStore = Annotated[None, WithJsonSchema({"type": "null", "title": "As usual"})]
EveryStage = Annotated[None, WithJsonSchema({"type": "null", "title": "The whole recipe"})]
"""A form names the kinds of a value by their titles."""

_FORMS = {
    "store": "the store {!r} has an unknown scheme; use s3://bucket/prefix or a directory",
    "overrides": "--set {!r} must be KEY=VALUE, such as branches.qwen.distill.recipe.steps=200",
    "until": "--until {!r} is no stage's label; see medius plan",
}
"""What is wrong with the value of an option."""


class RunOptions(Frozen):
    """How a profile is run."""

    overrides: tuple[Annotated[str, Field(pattern=r"^[\w<>|-]+(\.[\w<>|-]+)*=")], ...] = Field(
        (),
        description="Values of the profile to change, each KEY=VALUE as of --set; settings of a recipe make new keys.",
        examples=[["branches.llama.distill.recipe.steps=200"]],
    )
    store: StoreUri | UsualStore = Field(
        None,
        description="Where artifacts are; as usual in MEDIUS_STORE of the worker, or else the profile's own store.",
    )
    smoke: bool = Field(
        False, description="The same stages and models on 0.1 % of the data, without gates, under their own keys."
    )
    approved: bool = Field(
        False, description="Begin stages over the cost of the profile's `approval` without asking, and record that."
    )

    @classmethod
    def of(cls, **values: Sequence[str] | str | bool | None) -> Self:
        """The options that a command line gave.

        Raises:
            BadInputError: one of them has another form.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            said = _FORMS.get(str(first["loc"][0]), "an option is {!r}; correct it")
            raise BadInputError(said.format(first["input"])) from error


class RecipeOptions(RunOptions):
    """How a whole recipe is run."""

    until: Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9._-]*$", title="Up to a stage")] | EveryStage = Field(
        None, description='A stage\'s label, or "prepared" for the prepared models: only what is needed for that.'
    )


RUN = RunOptions()
RECIPE = RecipeOptions()
