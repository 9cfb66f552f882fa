"""The model card: YAML metadata that the hub understands, and the sections, all derived.

Nothing volatile is in it, so that a card is a function of the recipe, the model, the evaluation and the lineage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tasks.publish.lineage import Ancestor, is_twin
from tasks.publish.stage import PublishRecipe
from tasks.publish.tables import Table, headline, lineage_table, nearness_table, results_table, tasks_table

_STEPS = {
    "corpus": "Documents were tokenised once and split into training and held-out ones by their content",
    "dump_logits": "A teacher's next-token distributions were stored: some entries of each, and the mass of the others",
    "import_logits": "A teacher's next-token distributions were taken from a published set",
    "reshape": "A model was written as another architecture, or with some of its layers",
    "transplant": "A model was moved into another vocabulary",
    "distill": "The student was trained on the stored distributions",
    "revert": "The trained student was moved back into its own vocabulary",
    "fuse": "The branches, all in one vocabulary, were merged",
    "evolve": "Instructions were evolved",
    "clean": "The instructions were cleaned",
    "sft": "The result was trained on instructions",
}
_PREPARATION = "train-"
"""How the label of a training begins that made a model before the recipe (`prepared` of a profile)."""


def build_card(
    recipe: PublishRecipe, results: Mapping[str, Any], lineage: Sequence[Ancestor], model: Path
) -> ModelCard:
    """The card of the model in the folder `model`, whose measured numbers are in `results`.

    `lineage` holds the model's ancestors alone, or with those of the evaluation: the steps told are those in it.
    """
    data = _metadata(recipe, results)
    sections = [
        ("Overview", _overview(recipe)),
        ("Distillation steps", _steps(recipe, lineage)),
        ("Evaluation", _evaluation(recipe, results)),
        ("Use cases", _use_cases(recipe)),
        ("Deployment", _deployment(recipe)),
        ("Technical specification", _specification(model).markdown()),
        ("Lineage", _lineage(lineage)),
        ("Licence and notices", _licence(recipe)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {recipe.title}\n\n{body}\n")


def notice_text(recipe: PublishRecipe) -> str:
    """The file NOTICE, which the Llama and Qwen licences ask for; empty if no licence does."""
    return "".join(f"{notice}\n" for notice in recipe.terms.notices)


def _metadata(recipe: PublishRecipe, results: Mapping[str, Any]) -> ModelCardData:
    candidate = results["models"][results["candidate"]]
    measured = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task,
            metric_type=about["metric"],
            metric_name=about["metric"],
            metric_value=about["value"],
            metric_args={"stderr": about["stderr"], "n": about["n"]},
        )
        for task, about in candidate["tasks"].items()
    ]
    if "bits_per_byte" in candidate:
        bits = candidate["bits_per_byte"]
        measured.append(
            EvalResult(
                task_type="text-generation",
                dataset_type="heldout-texts",
                dataset_name="held-out texts",
                metric_type="bits_per_byte",
                metric_name="bits per byte",
                metric_value=bits["value"],
                metric_args={"stderr": bits["stderr"], "n": bits["documents"]},
            )
        )
    terms = recipe.terms
    return ModelCardData(
        base_model=list(recipe.base_model),
        datasets=[source.name for source in recipe.datasets if "/" in source.name] or None,
        eval_results=measured,
        language=list(recipe.language),
        library_name="transformers",
        license=terms.license,
        license_name=terms.license_name,
        license_link=terms.license_link if terms.license_name else None,
        model_name=recipe.title,
        pipeline_tag="text-generation",
        tags=["mergekit", "merge", "distillation"],
    )


def _overview(recipe: PublishRecipe) -> str:
    teachers = " and ".join(teacher.name for teacher in recipe.teachers)
    made = f"{recipe.title} started from {recipe.student.name}"
    made += f" and was distilled from the stored logits of {teachers}." if teachers else "."
    if recipe.generated_data:
        made += (
            " Its instructions are exercises generated from rules, with answers checked by the same rules; no evolved "
            "instruction set of another project was used."
        )
    notices = [notice.partition(".")[0] for notice in recipe.terms.notices]
    return "\n\n".join(filter(None, [recipe.overview, made, " · ".join(f"**{notice}**" for notice in notices)]))


def _steps(recipe: PublishRecipe, lineage: Sequence[Ancestor]) -> str:
    lines: list[str] = []
    for ancestor in lineage:
        manifest = ancestor.manifest
        stage = manifest.recipe.get("mode", "transplant") if manifest.stage == "surgeon" else manifest.stage
        if stage not in _STEPS:
            continue
        sentence = _STEPS[stage]
        if is_twin(manifest):
            sentence = "A twin for comparison was trained on the same tokens without a teacher"
        if stage == "sft" and manifest.label.startswith(_PREPARATION):
            sentence = "A model was trained on text before the recipe"
        if stage == "fuse":
            sentence += f" ({recipe.merge_method})"
        if stage == "clean":
            sentence += f": {cleaning_text(manifest.metrics)}"
        lines.append(f"{len(lines) + 1}. {sentence} (`{manifest.label}`).")
    return "\n".join(lines) if lines else f"Merge: {recipe.merge_method}."


def cleaning_text(metrics: Mapping[str, Any]) -> str:
    """What the stage `clean` counted, and with which evaluations the rows were not compared, in one sentence."""
    taken = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in metrics["removed"].items())
    text = f"of {metrics['offered']:,} rows {metrics['rows']:,} are left"
    text += f" (removed: {taken})" if taken else " (no step was on)"
    if "decontamination" not in metrics["removed"]:
        return f"{text}; they were compared with no evaluation"
    read = ", ".join(f"{name} ({about['items']:,} items)" for name, about in metrics["evaluations"].items())
    text += f"; compared with the evaluations {read}" if read else "; compared with no evaluation"
    left_out = "; ".join(f"{name}: {reason}" for name, reason in metrics["not_decontaminated"].items())
    return f"{text}; not compared with {left_out}" if left_out else text


def _evaluation(recipe: PublishRecipe, results: Mapping[str, Any]) -> str:
    version = results["harness"]["lm_eval"]
    templated = results["models"][results["candidate"]]["tokenizer"]["template_sha256"] is not None
    prompts = "each model's own chat template" if templated else "plain prompts"
    parts = [
        f"All models ran under lm-evaluation-harness {version}: the same items, greedy decoding, {prompts}. "
        f"The published model is `{results['candidate']}`; the one it started from is `{results['reference']}`. "
        f"Bits per byte compare across tokenizers, since the text is the same.",
        results_table(results, {}).markdown(),
        "\n".join(f"- {line}" for line in headline(results, {})),
        tasks_table(results).markdown(),
    ]
    if recipe.expected:
        parts += ["Beside the values of the published card:", nearness_table(results, recipe.expected).markdown()]
    return "\n\n".join(parts)


def _use_cases(recipe: PublishRecipe) -> str:
    if not recipe.use_cases:
        return "Research on distillation between model families. Nothing beyond the evaluation above was tested."
    return "\n".join(f"- {use}" for use in recipe.use_cases)


def _deployment(recipe: PublishRecipe) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{recipe.repo_name}")
model = AutoModelForCausalLM.from_pretrained("{recipe.repo_name}", dtype="auto", device_map="auto")
messages = [{{"role": "user", "content": "Sort: 3 1 2"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs.to(model.device), max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def _specification(model: Path) -> Table:
    config = json.loads((model / "config.json").read_bytes())
    parameters, dtypes = _weights(model)
    rows = [
        ("architecture", ", ".join(config.get("architectures") or [config["model_type"]])),
        ("parameters", f"{parameters:,}"),
        ("weights", ", ".join(dtypes)),
    ]
    for name, key in (
        ("layers", "num_hidden_layers"),
        ("hidden size", "hidden_size"),
        ("attention heads", "num_attention_heads"),
        ("key-value heads", "num_key_value_heads"),
        ("embedding rows", "vocab_size"),
        ("context", "max_position_embeddings"),
    ):
        if key in config:
            rows.append((name, f"{config[key]:,}"))
    return Table(("property", "value"), tuple(rows))


def _weights(model: Path) -> tuple[int, list[str]]:
    """Number of stored weights and their types, from the headers of the safetensors files."""
    parameters, dtypes = 0, set()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                parameters += size
                dtypes.add(tensor["dtype"])
    return parameters, sorted(dtypes)


def _lineage(lineage: Sequence[Ancestor]) -> str:
    return (
        "Every step that this model and its evaluation were made of. A key names a recipe, a digest the bytes that "
        f"came of it.\n\n{lineage_table(lineage).markdown()}"
    )


def _licence(recipe: PublishRecipe) -> str:
    terms = recipe.terms
    name = terms.license_name or terms.license
    parts = [f"{name}, {terms.license_link}: the strictest licence among what this model was made of."]
    sources = [("student", recipe.student), *(("teacher", each) for each in recipe.teachers)]
    sources += [("data", each) for each in recipe.datasets]
    rows = tuple((what, source.name, source.license) for what, source in sources)
    parts.append(Table(("part", "name", "licence"), rows).markdown())
    return "\n\n".join([*parts, *terms.notices])
