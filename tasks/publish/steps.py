"""How a model was made, in sentences, each from the recipe and the metrics of a step of its own lineage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.publish.lineage import Ancestor, Made, made
from tasks.publish.names import file_names, served_name
from tasks.publish.sources import model_source, sources

_STEPS = {
    "corpus": "Documents were tokenised once and split into training and held-out ones by their content",
    "dump_logits": "The next-token distributions of {teacher} were stored: some entries of each, and the mass of the "
    "others",
    "import_logits": "Next-token distributions of {teacher} were taken from a set that existed; the documents that "
    "they were made on were compared with no evaluation here",
    "reshape": "A model was written as another architecture, or with some of its layers",
    "transplant": "A model was moved into another vocabulary",
    "distill": "The student was trained on the stored distributions",
    "revert": "The trained student was moved back into its own vocabulary",
    "fuse": "The branches, all in one vocabulary, were merged",
    "clean": "The instructions were cleaned",
    "sft": "The result was trained on instructions",
}
_PREPARATION = "train-"
"""How the label of a training begins that made a model before the recipe (`prepared` of a profile)."""
_PREPARING = (_PREPARATION, "surgeon-", "reshape-")


def steps_text(lineage: Sequence[Ancestor], merge_method: str) -> str:
    """A numbered list of the steps; `merge_method` is what the profile calls the fusion."""
    known = made(lineage)
    lines: list[str] = []
    for ancestor in lineage:
        manifest = ancestor.manifest
        if manifest.stage == "evolve":
            sentence = instructions_text(manifest.recipe["source"], manifest.metrics)
        elif manifest.stage == "choose":
            sentence = choice_text(manifest.metrics)
        else:
            stage = manifest.recipe.get("mode", "transplant") if manifest.stage == "surgeon" else manifest.stage
            if stage not in _STEPS:
                continue
            sentence = _STEPS[stage].format(teacher=_teacher(known, known[manifest.key]) or "a teacher")
        if manifest.stage == "sft" and manifest.label.startswith(_PREPARATION):
            sentence = "A model was trained on text before the recipe"
        if manifest.stage == "fuse":
            sentence += f" ({merge_method}; {merge_text(manifest.recipe)})"
        if manifest.stage == "clean":
            sentence += f": {cleaning_text(manifest.metrics)}"
        if manifest.stage == "corpus":
            sentence += compared_text(known, known[manifest.key], manifest.metrics)
        lines.append(f"{len(lines) + 1}. {sentence} (`{manifest.label}`).")
    return "\n".join(lines)


def teachers(lineage: Mapping[str, Made]) -> list[str]:
    """Whose stored distributions the lineage holds, each once."""
    named = (_teacher(lineage, each) for each in lineage.values() if each.stage in {"dump_logits", "import_logits"})
    return list(dict.fromkeys(name for name in named if name is not None))


def _teacher(lineage: Mapping[str, Made], store: Made) -> str | None:
    if store.stage == "import_logits":
        return (store.recipe.get("teacher") or {}).get("repo") or f"the teacher of {store.label}"
    if "teacher" not in store.inputs:
        return None
    teacher = lineage[store.inputs["teacher"]]
    if teacher.stage == "models":
        source = model_source(teacher.recipe["source"], "teacher", teacher.label)
        return source.hub or source.shown or source.name
    # A teacher that was prepared: by the name that the profile gave it, and what it was made of.
    name = teacher.label
    for prefix in _PREPARING:
        name = name.removeprefix(prefix)
    made_of = [source for source in sources(lineage, teacher.key) if source.part == "student"]
    roots = [source.hub or source.shown or source.name for source in made_of]
    return f"{name} (made of {', '.join(dict.fromkeys(roots))})"


def instructions_text(source: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """What the instructions of a stage `evolve` are, and how many of how many offered ones there are."""
    rows, offered = metrics["answered"], metrics["seeds"]
    if source["kind"] == "exercises":
        return (
            f"The instructions are {rows:,} exercises generated from rules, with the answers that follow from the rules"
        )
    if source["kind"] == "dataset":
        return f"The instructions are {rows:,} of {offered:,} conversations of {_rows_text(source['rows'])}"
    named = {role: served_name(source[role]["model"]) for role in ("evolver", "answerer", "judge") if source.get(role)}
    judged = f", judged by {named['judge']}" if "judge" in named else ""
    return (
        f"{rows:,} instructions were evolved from {offered:,} seeds of {_rows_text(source['seeds'])} by "
        f"{named['evolver']} and answered by {named['answerer']}{judged}"
    )


def _rows_text(rows: Mapping[str, Any]) -> str:
    if rows["origin"] == "inline":
        return "the profile"
    if rows["origin"] == "package":
        return f"the Python package {rows['package']}"
    return str(rows["dataset"]) if rows["origin"] == "hub" else file_names([rows["path"]])


def choice_text(metrics: Mapping[str, Any]) -> str:
    """Which model a stage `choose` took, and why."""
    names = " and ".join(metrics["models"])
    return f"Of {names} one was chosen on what the evaluation does not read: {metrics['reason']}"


def cleaning_text(metrics: Mapping[str, Any]) -> str:
    """What the stage `clean` counted, and with which evaluations the rows were not compared, in one sentence."""
    taken = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in metrics["removed"].items())
    text = f"of {metrics['offered']:,} rows {metrics['rows']:,} are left"
    text += f" (removed: {taken})" if taken else " (no step was on)"
    if "decontamination" not in metrics["removed"]:
        return f"{text}; they were compared with no evaluation"
    return f"{text}; {_read_text(metrics)}"


def compared_text(lineage: Mapping[str, Made], corpus: Made, metrics: Mapping[str, Any]) -> str:
    """With which evaluations the documents of a corpus were compared, as the end of a sentence; nothing for
    instructions alone that were cleaned, of which the step before tells it."""
    told = metrics.get("decontamination")
    if told is not None:
        removed = sum(told["removed"].values())
        return (
            f"; of {told['documents']:,} documents {removed:,} share text with an evaluation and were left out; "
            f"{_read_text(told)}"
        )
    cleaned = "instructions" in corpus.inputs and lineage[corpus.inputs["instructions"]].stage == "clean"
    instructions = [source["kind"] == "instructions" for source in corpus.recipe["sources"]]
    if cleaned and all(instructions):
        return ""
    whose = "all but the instructions" if cleaned and any(instructions) else "they"
    return f"; {whose} were compared with no evaluation"


def _read_text(told: Mapping[str, Any]) -> str:
    """What `evaluations` and `not_decontaminated` of a comparison say."""
    read = ", ".join(f"{name} ({about['items']:,} items)" for name, about in told["evaluations"].items())
    text = f"compared with the evaluations {read}" if read else "compared with no evaluation"
    left_out = "; ".join(f"{name}: {reason}" for name, reason in told["not_decontaminated"].items())
    return f"{text}; not compared with {left_out}" if left_out else text


def merge_text(recipe: Mapping[str, Any]) -> str:
    """The parameters of a fusion, such as "ties, llama density 1.0 weight 0.5, normalize true"."""
    return ", ".join([str(recipe.get("merge_method", "merged")), *_merge_parts(recipe)])


def _merge_parts(recipe: Mapping[str, Any]) -> Iterator[str]:
    for name, branch in sorted((recipe.get("models") or {}).items()):
        if given := branch.get("parameters"):
            yield f"{name} {_settings(given)}"
    if shared := recipe.get("parameters"):
        yield _settings(shared)


def _settings(given: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {setting_text(value)}" for name, value in given.items())


def setting_text(value: Any) -> str:
    """A number, a gradient over the layers, or a value for each filter, shortly."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return "/".join(f"{each.get('filter') or 'else'} {setting_text(each.get('value'))}" for each in value)
    if isinstance(value, Mapping):
        return f"{value.get('filter') or 'all'} {setting_text(value.get('value'))}"
    return json.dumps(value)
