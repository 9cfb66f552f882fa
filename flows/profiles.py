"""A profile: one complete YAML file that says everything a run needs.

`load_profile` reads, overrides (`--set a.b=value`), validates, and resolves: a source without a pinned revision gets
the hash of its present content, so that every key is known before anything runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from flows.ablation_grid import Ablations
from flows.addresses import STORE_VARIABLE
from flows.approval_rule import ApprovalRule
from flows.fine_tuning import FineTuning, choice_fault, replay_fault
from flows.prepared import PreparedModels, donor_fault, prepared_fault, tokenizers_alone
from flows.smoke import shrink
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.redact import find_credential
from tasks.corpus.stage import CorpusConfig
from tasks.distill.stage import DistillConfig, mixture_fault
from tasks.dump_logits.stage import DumpLogitsConfig
from tasks.evaluate.stage import EvaluateConfig
from tasks.fuse.stage import FuseConfig
from tasks.import_logits.stage import ImportLogitsConfig
from tasks.models.stage import ModelsConfig
from tasks.publish.stage import PublishConfig
from tasks.runtime.declare import Gates
from tasks.surgeon.stage import SurgeonConfig

CONFIGS = Path(__file__).parents[1] / "configs"
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
"""Of a model or a branch: part of stages' labels, and so of their folders in a store."""
T = TypeVar("T", bound=Frozen)


class LogitSource(Frozen):
    """Where stored logits come from: a dump, which runs the teacher, or an import, which does not."""

    dump_logits: DumpLogitsConfig | None = None
    import_logits: ImportLogitsConfig | None = None
    """Takes the place of `dump_logits` where the teacher's logits are stored already. Of `teacher` it reads only the
    tokenizer, so that may be any model with the same one."""

    @model_validator(mode="after")
    def _logits_come_from_somewhere(self) -> Self:
        if (self.dump_logits is None) == (self.import_logits is None):
            raise ValueError("give one of `dump_logits`, which runs the teacher, and `import_logits`, which does not")
        return self


class MoreLogits(LogitSource):
    """A further store that a branch's student learns from, in the branch's vocabulary."""

    teacher: str | None = None
    """A name in `models`: another model with the tokenizer of the branch's teacher; that teacher if not named."""
    corpus: CorpusConfig | None = None
    """What the teacher reads; the branch's own corpus if not given."""

    @model_validator(mode="after")
    def _corpus_is_read(self) -> Self:
        if self.import_logits is not None and self.corpus is not None:
            raise ValueError("`import_logits` reads no corpus; leave `corpus` out")
        return self


class Branch(LogitSource):
    """One teacher, and the student that learns from it."""

    teacher: str
    student: str
    """Names in `models`."""
    donor: str | None = None
    """A model of the teacher's vocabulary that gives tokenizer and embeddings; the teacher itself if not named."""
    corpus: CorpusConfig
    """What the teacher reads. With `import_logits` students are only measured on its held-out documents; whether the
    imported set trained on some of them is not known here."""
    more_logits: dict[Name, MoreLogits] = Field(default_factory=dict)
    """Further stores by name. `distill.recipe.mixture` then weighs them and the branch's own, by the branch's name."""
    surgeon: SurgeonConfig | None = None
    """Gives the student the teacher's vocabulary; absent where it has that already."""
    distill: DistillConfig
    twin: DistillConfig | None = None
    """The same training on the labels alone: what the teacher's distribution is measured against."""
    revert: SurgeonConfig | None = None

    @model_validator(mode="after")
    def _there_and_back(self) -> Self:
        if (self.surgeon is None) != (self.revert is None):
            raise ValueError("`surgeon` and `revert` go together: a vocabulary that is changed is changed back")
        return self

    @model_validator(mode="after")
    def _twin_differs_in_its_loss_only(self) -> Self:
        if self.twin is None:
            return self
        mine, other = (_but_for_the_loss(config.recipe.model_dump()) for config in (self.distill, self.twin))
        different = [name for name in mine if mine[name] != other[name]]
        if different:
            raise ValueError(
                f"distill and twin differ in {', '.join(different)}; a twin has the same data, steps and seed, and "
                f"another loss (and learning rate)"
            )
        return self


def _but_for_the_loss(recipe: dict[str, Any]) -> dict[str, Any]:
    optimizer = {name: value for name, value in recipe["optimizer"].items() if name != "learning_rate"}
    return {**{name: value for name, value in recipe.items() if name != "loss"}, "optimizer": optimizer}


class Fusion(Frozen):
    """How the branches become one model."""

    merge_base: str
    fuse: FuseConfig


class Assessment(Frozen):
    """What is measured, and against what."""

    baselines: tuple[str, ...] = ()
    """Names in `models`, measured beside the recipe's own."""
    teachers: bool = True
    """Whether the teachers are measured too; a 405B one had its own node."""
    evaluate: EvaluateConfig


class Profile(Frozen):
    """A recipe with everything it needs."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    store: str
    """s3://bucket/prefix or a directory."""
    parallel_stages: int = Field(2, ge=1)
    """How many stages may work at once on the head node."""
    require_room: bool = True
    """Whether a run is refused that is forecast not to fit on the disks of its host."""
    approval: ApprovalRule | None = None
    """From which cost on somebody is asked before a stage begins; None: never."""
    models: dict[Name, ModelsConfig]
    prepared: PreparedModels = Field(default_factory=dict)
    """Models made once, before the recipe; their names can stand wherever one of `models` can."""
    branches: dict[Name, Branch] = Field(min_length=1)
    fusion: Fusion
    fine_tuning: FineTuning
    assessment: Assessment
    publish: PublishConfig
    ablations: Ablations = Ablations()
    """What `medius ablate` tries; no part of the recipe."""
    expected: dict[str, float] = Field(default_factory=dict)
    """What a published card reports for the final model, by benchmark: the report says how near a run came."""

    @model_validator(mode="after")
    def _branches_hold_out_the_same_documents(self) -> Self:
        split = {
            name: branch.corpus.recipe.model_dump(include={"sources", "seed", "heldout_fraction"})
            for name, branch in self.branches.items()
        }
        first, *others = split
        for name in others:
            for field in split[first]:
                if split[name][field] != split[first][field]:
                    raise ValueError(
                        f"branches.{first} and branches.{name} differ in corpus.recipe.{field}, so one would be "
                        f"measured on documents that it was trained on; make them equal"
                    )
        # Further stores may have other documents: whether one is held out hangs on its own text, seed and fraction.
        for name, branch in self.branches.items():
            for other, more in branch.more_logits.items():
                for field in ("seed", "heldout_fraction"):
                    if more.corpus is not None and getattr(more.corpus.recipe, field) != split[first][field]:
                        raise ValueError(
                            f"branches.{first} and branches.{name}.more_logits.{other} differ in corpus.recipe."
                            f"{field}, so a document held out of one may be trained on in the other; make them equal"
                        )
        for name, block in self.prepared.items():
            for field in ("seed", "heldout_fraction"):
                if block.corpus is not None and getattr(block.corpus.recipe, field) != split[first][field]:
                    raise ValueError(
                        f"branches.{first} and prepared.{name} differ in corpus.recipe.{field}, so a model would be "
                        f"measured on documents that it was trained on; make them equal"
                    )
        self._fine_tuning_holds_out_as_much(split[first])
        return self

    def _fine_tuning_holds_out_as_much(self, split: Mapping[str, Any]) -> None:
        tuned = self.fine_tuning.corpus.recipe
        if all(source.kind == "instructions" for source in tuned.sources):
            return
        # A document is held out by its hash, which is below the larger fraction whenever it is below the smaller one.
        if tuned.seed != split["seed"] or tuned.heldout_fraction < split["heldout_fraction"]:
            raise ValueError(
                f"fine_tuning.corpus.recipe has text besides the instructions and another split than the branches "
                f"(seed {tuned.seed}, heldout_fraction {tuned.heldout_fraction:g}, against {split['seed']} and "
                f"{split['heldout_fraction']:g}), so the result would be measured on documents that it was trained on; "
                f"take the branches' seed and at least their fraction"
            )

    @model_validator(mode="after")
    def _stores_are_named_and_weighed(self) -> Self:
        names = ["sft", *self.branches, *self.prepared]
        for name, branch in self.branches.items():
            if name in branch.more_logits:
                raise ValueError(
                    f"branches.{name}.more_logits has a store {name!r}, but that is the branch's own; rename it"
                )
            if (fault := mixture_fault(branch.distill.recipe.mixture, [name, *branch.more_logits])) is not None:
                raise ValueError(f"branches.{name}.distill: {fault}")
            names += [f"{name}-{other}" for other in branch.more_logits]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"'corpus-{name}' or 'logits-{name}' would name two stages; rename the branch, the prepared model "
                    f"or the store in more_logits"
                )
        return self

    @model_validator(mode="after")
    def _compared_models_have_names_of_their_own(self) -> Self:
        names = [*self.models, *self.prepared, "fused", "final"]
        names += ["tuned"] if self.fine_tuning.choose is not None else []
        for name, branch in self.branches.items():
            names += [
                name,
                *([f"{name}-twin"] if branch.twin else []),
                *([f"{name}-reverted"] if branch.revert else []),
            ]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} would name two models of the comparison; rename the branch or the model")
        return self

    @model_validator(mode="after")
    def _fine_tuning_fits(self) -> Self:
        surgery = {name: branch.surgeon is not None for name, branch in self.branches.items()}
        read = {name: branch.corpus.recipe for name, branch in self.branches.items()}
        learnt = {f"branches.{name}.corpus": recipe for name, recipe in read.items()}
        for name, branch in self.branches.items():
            for other, more in branch.more_logits.items():
                if more.corpus is not None:
                    learnt[f"branches.{name}.more_logits.{other}.corpus"] = more.corpus.recipe
        for name, block in self.prepared.items():
            if block.corpus is not None:
                learnt[f"prepared.{name}.corpus"] = block.corpus.recipe
        tuning, evaluated = self.fine_tuning, self.assessment.evaluate.recipe
        for fault in (replay_fault(tuning, surgery, read), choice_fault(tuning, evaluated, learnt)):
            if fault is not None:
                raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        used = {
            "fusion.merge_base": self.fusion.merge_base,
            **{f"assessment.baselines[{i}]": name for i, name in enumerate(self.assessment.baselines)},
        }
        for label, branch in self.branches.items():
            used |= {f"branches.{label}.teacher": branch.teacher, f"branches.{label}.student": branch.student}
            if branch.donor is not None:
                used[f"branches.{label}.donor"] = branch.donor
            for name, more in branch.more_logits.items():
                if more.teacher is not None:
                    used[f"branches.{label}.more_logits.{name}.teacher"] = more.teacher
        if (wrong := prepared_fault(self.prepared, self.models)) is not None:
            raise ValueError(wrong)
        known, alone = [*self.models, *self.prepared], tokenizers_alone(self.models)
        for label, branch in self.branches.items():
            if (wrong := donor_fault(f"branches.{label}", branch.donor, branch.surgeon, alone)) is not None:
                raise ValueError(wrong)
        for where, name in used.items():
            if name not in known:
                raise ValueError(f"{where} is {name!r}, which is not among models: {', '.join(known)}")
            if name in alone and not where.endswith(".donor"):
                raise ValueError(f"{where} is {name!r}, which is a tokenizer without a model; name a model")
        return self


def profile_path(name_or_path: str) -> Path:
    """`tiny` means configs/tiny.yaml; anything with a suffix is a path."""
    path = Path(name_or_path)
    found = path if path.suffix in {".yaml", ".yml"} else CONFIGS / f"{name_or_path}.yaml"
    if not found.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise BadInputError(f"there is no profile {name_or_path!r}; name a YAML file or one of: {known}")
    return found


def load_profile(
    name_or_path: str, overrides: Sequence[str] = (), store: str | None = None, *, smoke: bool = False
) -> Profile:
    """Reads, overrides, validates and resolves a profile. Raises BadInputError with the file and the key."""
    path = profile_path(name_or_path)
    try:
        document = _unshared(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise BadInputError(f"{path} must hold a mapping; see configs/tiny.yaml for a complete one")
    for text in overrides:
        _override(document, text)
    if chosen := store or os.environ.get(STORE_VARIABLE):
        document["store"] = chosen
    if (place := find_credential(document)) is not None:
        raise BadInputError(
            f"{path}: {place} holds a credential; take it out of the file or the --set and put it into the environment"
        )
    if smoke:
        document = shrink(document)
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        raise BadInputError(_first_problem(path, error)) from error
    return resolve(ungated(profile) if smoke else profile)


def _first_problem(path: Path, error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such key"
    return f"{path}: {where or 'profile'}: {message}{more}; correct the file or the --set"


def _unshared(value: Any) -> Any:
    """A copy in which two aliases of one YAML anchor are two objects, so that `--set` changes the one it names."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _override(document: dict[str, Any], text: str) -> None:
    dotted, equals, value = text.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise BadInputError(f"--set {text!r} must look like fusion.fuse.recipe.dtype=float32")
    place: Any = document
    for depth, key in enumerate(keys[:-1]):
        if isinstance(place, list) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, dict):
            place = place.setdefault(key, {})
        else:
            raise BadInputError(f"--set {text!r}: {'.'.join(keys[:depth])} has no part {key!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInputError(f"--set {text!r}: the value is no valid YAML") from error
    if isinstance(place, list) and keys[-1].isdigit() and int(keys[-1]) < len(place):
        place[int(keys[-1])] = parsed
    elif isinstance(place, dict):
        place[keys[-1]] = parsed
    else:
        raise BadInputError(f"--set {text!r}: {'.'.join(keys[:-1])} has no part {keys[-1]!r}")


def resolve(profile: Profile) -> Profile:
    """Gives every source its identity (see `with_identity` of the sources)."""
    return _rebuilt(profile, lambda block: block.with_identity() if hasattr(block, "with_identity") else block)


def ungated(whole: T) -> T:
    """A profile, or a part of one, without thresholds: for what is too small or too strange to be held to them."""
    return _rebuilt(
        whole,
        lambda block: (
            block.model_copy(update=dict.fromkeys(type(block).model_fields)) if isinstance(block, Gates) else block
        ),
    )


def _rebuilt(block: T, change: Callable[[Any], Any]) -> T:
    """`block` with every block inside it, and then itself, replaced by what `change` makes of it."""
    changed = {name: _rebuilt_value(getattr(block, name), change) for name in type(block).model_fields}
    changed = {name: value for name, value in changed.items() if value is not getattr(block, name)}
    rebuilt: T = change(block.model_copy(update=changed) if changed else block)
    return rebuilt


def _rebuilt_value(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Frozen):
        return _rebuilt(value, change)
    if isinstance(value, tuple | list):
        items = [_rebuilt_value(item, change) for item in value]
        return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if isinstance(value, Mapping):
        entries = {key: _rebuilt_value(item, change) for key, item in value.items()}
        return entries if any(entries[key] is not value[key] for key in value) else value
    return value
