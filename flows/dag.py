"""The recipe as a DAG.

    corpus, Llama tokens ─── dump, Llama teacher ──┐
    student ─── surgeon: the Llama vocabulary ─────┴─ distill ─── surgeon, back ──┐
    corpus, Qwen tokens ─┬─ dump, Qwen teacher ────┐                              ├─ fuse ─┐
    student ─────────────┴─────────────────────────┴─ distill ────────────────────┘        ├─ sft ─ choose ─┬─ publish
    seed instructions ─── evolve ─── clean ────────────────────────────────────────────────┘                └─ evaluate

A model above may itself be prepared: reshaped, moved into another vocabulary, trained (`_models`). `build` makes all of
inert steps whose keys are known before anything runs; flows/pipeline.py runs them. It knows no Prefect, so that what
only looks at a recipe loads none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flows.fine_tuning import documents_of
from flows.measured_models import require_measured
from flows.profiles import Branch, LogitSource, Profile
from tasks.artifacts.errors import BadInputError
from tasks.choose.stage import STAGE as CHOOSE
from tasks.clean.stage import STAGE as CLEAN
from tasks.corpus.stage import STAGE as CORPUS
from tasks.corpus.stage import CorpusConfig
from tasks.distill.stage import STAGE as DISTILL
from tasks.dump_logits.stage import STAGE as DUMP_LOGITS
from tasks.evaluate.stage import STAGE as EVALUATE
from tasks.evolve.stage import STAGE as EVOLVE
from tasks.fuse.stage import STAGE as FUSE
from tasks.import_logits.stage import STAGE as IMPORT_LOGITS
from tasks.models.stage import STAGE as MODELS
from tasks.publish.stage import STAGE as PUBLISH
from tasks.reshape.stage import STAGE as RESHAPE
from tasks.runtime.declare import Step
from tasks.sft.stage import STAGE as SFT
from tasks.surgeon.stage import STAGE as SURGEON

PREPARED = "prepared"


def build(profile: Profile, until: str | None = None) -> list[Step]:
    """The steps of a profile, each after its inputs. Two steps with one key are one step.

    `until` is a step's label, or "prepared" for all prepared models: then only what those need.

    Raises:
        BadInputError: there is no such step, or the evaluation compares models that are none of the recipe's.
    """
    models = _models(profile)
    fused_from: dict[str, Step] = {"base": models[profile.fusion.merge_base]}
    # All students have one tokenizer, and its chat template is the one that the result will have.
    chat = models[next(iter(profile.branches.values())).student]
    compared: dict[str, Step] = {}
    corpora: list[Step] = []
    replayed: dict[tuple[str, str], Step] = {}
    for name, branch in profile.branches.items():
        teacher, student = models[branch.teacher], models[branch.student]
        corpus = _corpus(profile, name, branch.corpus, {"tokenizer": teacher})
        corpora.append(corpus)
        logits = _stores(profile, name, branch, models, corpus)
        replayed |= {(name, "corpus"): corpus, (name, "logits"): logits.get(f"logits.{name}") or logits["logits"]}
        start = student
        if branch.surgeon is not None:
            donor = models[branch.donor or branch.teacher]
            start = Step(SURGEON, f"surgeon-{name}", branch.surgeon, {"student": student, "donor": donor})
        trained = Step(DISTILL, f"distill-{name}", branch.distill, {"student": start, **logits})
        compared |= {branch.student: student, name: trained}
        if profile.assessment.teachers:
            more = [source.teacher for source in branch.more_logits.values() if source.teacher is not None]
            compared |= {who: models[who] for who in (branch.teacher, *more)}
        if branch.twin is not None:
            compared[f"{name}-twin"] = Step(DISTILL, f"twin-{name}", branch.twin, {"student": start, **logits})
        if branch.revert is not None:
            trained = Step(SURGEON, f"revert-{name}", branch.revert, {"trained": trained, "original": student})
            compared[f"{name}-reverted"] = trained
        fused_from[f"branch.{name}"] = trained
    fused = Step(FUSE, "fuse", profile.fusion.fuse, fused_from)
    evolved = Step(EVOLVE, "evolve", profile.fine_tuning.evolve)
    if profile.fine_tuning.clean is not None:
        cleaning = profile.fine_tuning.clean.against(profile.assessment.evaluate.recipe.tasks)
        evolved = Step(CLEAN, "clean", cleaning, {"instructions": evolved})
    instructions = _corpus(profile, "sft", profile.fine_tuning.corpus, {"tokenizer": chat, "instructions": evolved})
    learnt = {"model": fused, "corpus": instructions}
    if profile.fine_tuning.replay is not None:
        learnt["replay"] = replayed[profile.fine_tuning.replay.branch, profile.fine_tuning.replay.rows]
    final = Step(SFT, "sft", profile.fine_tuning.training, learnt)
    # Where all logits are imported no corpus was read yet.
    read = {step.key for step in closure([fused])}
    heldout = next((corpus for corpus in corpora if corpus.key in read), corpora[0])
    compared["fused"] = fused
    if profile.fine_tuning.choose is not None:
        compared["tuned"] = final
        candidates = {"model.fused": fused, "model.tuned": final}
        choosing = profile.fine_tuning.choose.after(documents_of(profile.assessment.evaluate.recipe))
        final = Step(CHOOSE, "choose", choosing, {**candidates, "corpus": heldout, "instructions": instructions})
    compared |= {"final": final, **{name: models[name] for name in profile.assessment.baselines}}
    require_measured(profile.assessment.evaluate.recipe, compared, final)
    scores = Step(
        EVALUATE,
        "evaluate",
        profile.assessment.evaluate,
        {"corpus": heldout, **{f"model.{name}": step for name, step in compared.items()}},
    )
    publishing = profile.publish.expecting(profile.expected)
    published = Step(PUBLISH, "publish", publishing, {"model": final, "evaluation": scores})
    prepared = [models[name] for name in profile.prepared]
    steps = closure([*prepared, published])
    if until is None:
        return steps
    wanted = prepared if until == PREPARED else [step for step in steps if step.label == until]
    if not wanted:
        raise BadInputError(
            f"{profile.name} has no stage {until!r} to run until; name one of: "
            f"{', '.join([*([PREPARED] if prepared else []), *(step.label for step in steps)])}"
        )
    return closure(wanted)


def _models(profile: Profile) -> dict[str, Step]:
    """The models that the recipe names: those that exist, and those that are prepared of them."""
    models = {name: Step(MODELS, f"model-{name}", config) for name, config in profile.models.items()}
    for name, block in profile.prepared.items():
        made = models[block.model]
        if block.reshape is not None:
            made = Step(RESHAPE, f"reshape-{name}", block.reshape, {"model": made})
        if block.surgeon is not None and block.donor is not None:
            made = Step(SURGEON, f"surgeon-{name}", block.surgeon, {"student": made, "donor": models[block.donor]})
        if block.train is not None and block.corpus is not None:
            corpus = _corpus(profile, name, block.corpus, {"tokenizer": made})
            made = Step(SFT, f"train-{name}", block.train, {"model": made, "corpus": corpus})
        models[name] = made
    return models


def _corpus(profile: Profile, name: str, config: CorpusConfig, inputs: Mapping[str, Step]) -> Step:
    """A corpus, compared with what the profile evaluates if its recipe says so."""
    return Step(CORPUS, f"corpus-{name}", config.against(profile.assessment.evaluate.recipe.tasks), inputs)


def _stores(profile: Profile, name: str, branch: Branch, models: Mapping[str, Step], corpus: Step) -> dict[str, Step]:
    """What a branch's student learns from, by role: the branch's own logits, and those of `more_logits`."""
    teacher = models[branch.teacher]
    stores = {name: _logits(name, branch, teacher, corpus)}
    for other, more in branch.more_logits.items():
        label = f"{name}-{other}"
        who = models[more.teacher] if more.teacher is not None else teacher
        what = corpus if more.corpus is None else _corpus(profile, label, more.corpus, {"tokenizer": who})
        stores[other] = _logits(label, more, who, what)
    return (
        {f"logits.{store}": step for store, step in stores.items()} if branch.more_logits else {"logits": stores[name]}
    )


def _logits(label: str, source: LogitSource, teacher: Step, corpus: Step) -> Step:
    if source.import_logits is not None:
        return Step(IMPORT_LOGITS, f"logits-{label}", source.import_logits, {"tokenizer": teacher})
    assert source.dump_logits is not None
    return Step(DUMP_LOGITS, f"logits-{label}", source.dump_logits, {"teacher": teacher, "corpus": corpus})


def closure(roots: list[Step]) -> list[Step]:
    """All steps that `roots` need, each after its inputs; the first of two with one key stands for both."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> Step:
        if step.key not in found:
            inputs = {role: visit(source) for role, source in step.inputs.items()}
            found[step.key] = replace(step, inputs=inputs)
        return found[step.key]

    for root in roots:
        visit(root)
    return list(found.values())
