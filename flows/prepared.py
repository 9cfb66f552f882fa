"""Models that a profile makes before its recipe, so that the recipe can use them by name like any other.

Each is made of a model by what is given of these, in this order: another form (`reshape`), another vocabulary
(`surgeon`), a training on text of its own (`corpus` and `train`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.corpus.stage import CorpusConfig
from tasks.models.stage import ModelsConfig, TokenizerSource
from tasks.reshape.stage import ReshapeConfig
from tasks.sft.stage import SftConfig
from tasks.surgeon.stage import SurgeonConfig, TransplantRecipe


class Prepared(Frozen):
    """One model made of another; what is left out is not done."""

    model: str
    """A name in `models`, or in `prepared` above this one."""
    reshape: ReshapeConfig | None = None
    surgeon: SurgeonConfig | None = None
    """A transplant into the vocabulary of `donor`."""
    donor: str | None = None
    """A name as for `model`; with the method "composed" a tokenizer alone will do."""
    corpus: CorpusConfig | None = None
    train: SftConfig | None = None
    """On `corpus`, by cross-entropy: heals a transplant, or teaches another domain."""

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        if self.reshape is None and self.surgeon is None and self.train is None:
            raise ValueError("nothing is done to the model; give reshape, surgeon or train")
        if (self.surgeon is None) != (self.donor is None):
            raise ValueError("`surgeon` and `donor` go together: a transplant is into the vocabulary of a donor")
        if self.surgeon is not None and not isinstance(self.surgeon.recipe, TransplantRecipe):
            raise ValueError("surgeon.recipe.mode is revert, but nothing was transplanted; set it to transplant")
        if (self.corpus is None) != (self.train is None):
            raise ValueError("`corpus` and `train` go together: a training needs text, and text is there to train on")
        return self


PreparedModels = dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], Prepared]


def tokenizers_alone(models: Mapping[str, ModelsConfig]) -> set[str]:
    """The names of those that are no models: only their vocabulary can be used."""
    return {name for name, config in models.items() if isinstance(config.recipe.source, TokenizerSource)}


def donor_fault(where: str, donor: str | None, surgeon: SurgeonConfig | None, alone: Collection[str]) -> str | None:
    """Why `donor` cannot serve the transplant `surgeon` at `where`; None if it can. `alone`: see `tokenizers_alone`."""
    method = getattr(surgeon.recipe, "method", None) if surgeon is not None else None
    if donor not in alone or method in (None, "composed"):
        return None
    return (
        f"{where}.donor is {donor!r}, a tokenizer without a model, and the method {method} needs embeddings; set "
        f"{where}.surgeon.recipe.method to composed, or name a model"
    )


def prepared_fault(prepared: Mapping[str, Prepared], models: Mapping[str, ModelsConfig]) -> str | None:
    """What is wrong with the names that prepared models use, as one sentence; None if nothing is."""
    known, alone = [*models], tokenizers_alone(models)
    for name, block in prepared.items():
        for field, used in (("model", block.model), ("donor", block.donor)):
            if used is None or used in known:
                continue
            if used in prepared:
                return (
                    f"prepared.{name}.{field} is {used!r}, which is prepared later or is this one itself; order the "
                    f"prepared models so that each uses earlier ones"
                )
            return f"prepared.{name}.{field} is {used!r}, which is not among models and prepared: {', '.join(known)}"
        if block.model in alone:
            return f"prepared.{name}.model is {block.model!r}, which is a tokenizer without a model; name a model"
        if (wrong := donor_fault(f"prepared.{name}", block.donor, block.surgeon, alone)) is not None:
            return wrong
        known.append(name)
    return None
