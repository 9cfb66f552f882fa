"""The model card: YAML metadata that the hub understands, and the sections, all derived.

Nothing volatile is in it, so that a card is a function of the recipe, the model, the evaluation and the lineage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tasks.publish.asked import asked, asked_table
from tasks.publish.deployment import deployment_text
from tasks.publish.entries import (
    entries_table,
    entry_differences_table,
    has_several_entries,
    nearness_note,
    nearness_table,
    tasks_are_entries,
)
from tasks.publish.layout import Layout
from tasks.publish.lineage import Ancestor, made
from tasks.publish.sources import LicensedSource
from tasks.publish.stage import PublishRecipe
from tasks.publish.steps import instructions_text, steps_text, teachers
from tasks.publish.tables import Table, headline, lineage_table, results_table, shown_error, tasks_table
from tasks.publish.terms import Terms


@dataclass(frozen=True)
class Told:
    """What a card is derived from."""

    recipe: PublishRecipe
    layout: Layout
    results: Mapping[str, Any]
    """results.json of the evaluation."""
    lineage: Sequence[Ancestor]
    """The model's ancestors, itself the last."""
    compared: Sequence[Ancestor]
    """These, and those of the evaluation."""
    sources: Sequence[LicensedSource]
    terms: Terms
    texts: Sequence[str]
    """Which licences' texts go along and which are missing, in sentences."""
    marker: str
    """A line by which the card is known again."""


def build_card(told: Told) -> ModelCard:
    """The card of a model."""
    recipe = told.recipe
    sections = [
        ("Overview", _overview(told)),
        ("Distillation steps", steps_text(told.lineage, recipe.merge_method)),
        ("Evaluation", _evaluation(recipe, told.results)),
        ("Use cases", _use_cases(recipe)),
        ("Deployment options", deployment_text(recipe, told.layout)),
        ("Technical specifications", _specification(told.layout).markdown()),
        ("Lineage", _lineage(told.compared)),
        ("Licence and notices", _licence(told)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    return ModelCard(f"---\n{_metadata(told).to_yaml()}\n---\n\n# {recipe.title}\n\n{body}\n\n{told.marker}\n")


def notice_text(terms: Terms, texts: Sequence[str]) -> str:
    """The file NOTICE; empty if no licence asks for one. `texts` are the sentences about licences' texts."""
    lines = (*terms.displays, *terms.notices, *texts)
    return "".join(f"{line}\n" for line in lines)


def _metadata(told: Told) -> ModelCardData:
    candidate = told.results["models"][told.results["candidate"]]
    measured = [
        EvalResult(
            task_type="text-generation",
            dataset_type=entry,
            dataset_name=entry,
            metric_type=about["metric"],
            metric_name=about["metric"],
            metric_value=about["value"],
            metric_args={"stderr": shown_error(about), "n": about["n"]},
        )
        for entry, about in candidate["entries"].items()
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
    terms = told.terms
    return ModelCardData(
        base_model=[source.hub for source in _students(told) if source.hub] or None,
        datasets=[source.hub for source in told.sources if source.kind == "data" and source.hub] or None,
        eval_results=measured,
        language=list(told.recipe.language),
        library_name="transformers",
        license=terms.license,
        license_name=terms.license_name,
        license_link=(terms.license_link or None) if terms.license_name else None,
        model_name=told.recipe.title,
        pipeline_tag="text-generation",
        tags=["mergekit", "merge", "distillation"],
    )


def _students(told: Told) -> list[LicensedSource]:
    """The models whose weights it began as."""
    return [source for source in told.sources if "student" in source.parts]


def _overview(told: Told) -> str:
    known = made(told.lineage)
    taught = " and ".join(teachers(known))
    students = " and ".join(source.hub or source.card_name for source in _students(told))
    text = f"{told.recipe.title} has its weights from {students}"
    text += f" and was distilled from the stored logits of {taught}." if taught else "."
    evolved = [each.manifest for each in told.lineage if each.manifest.stage == "evolve"]
    for manifest in evolved:
        text += f" {instructions_text(manifest.recipe['source'], manifest.metrics)}."
    if evolved and all(manifest.recipe["source"]["kind"] == "exercises" for manifest in evolved):
        text += " No evolved instruction set of another project was used."
    displays = " · ".join(f"**{display}**" for display in told.terms.displays)
    return "\n\n".join(filter(None, [told.recipe.overview, text, displays]))


def _evaluation(recipe: PublishRecipe, results: Mapping[str, Any]) -> str:
    version = results["harness"]["lm_eval"]
    parts = [
        f"All models ran under lm-evaluation-harness {version} on the same items: {asked(results)}. "
        f"The published model is `{results['candidate']}`; the one it started from is `{results['reference']}`. "
        f"Bits per byte compare across tokenizers, since the text is the same.",
        results_table(results, {}).markdown(),
        "\n".join(f"- {line}" for line in headline(results, {})),
    ]
    if has_several_entries(results):
        parts += [
            "The accuracy above is over all items, so a benchmark counts by its size. Each by itself, and all with "
            "equal weights:",
            entries_table(results, recipe.expected).markdown(),
            f"`{results['candidate']}` minus each other model, paired over the same items:",
            entry_differences_table(results).markdown(),
        ]
    if not tasks_are_entries(results):
        parts += ["By task:", tasks_table(results).markdown()]
    parts += [f"The tasks as lm-evaluation-harness {version} ran them:", asked_table(results).markdown()]
    if recipe.expected:
        parts += [nearness_note(results, recipe.expected), nearness_table(results, recipe.expected).markdown()]
    return "\n\n".join(parts)


def _use_cases(recipe: PublishRecipe) -> str:
    if not recipe.use_cases:
        return "Research on distillation between model families. Nothing beyond the evaluation above was tested."
    return "\n".join(f"- {use}" for use in recipe.use_cases)


def _specification(layout: Layout) -> Table:
    rows = [
        ("architecture", layout.architecture),
        ("parameters", f"{layout.num_parameters:,}"),
        ("weights", ", ".join(layout.dtypes)),
    ]
    for name, key in (
        ("layers", "num_hidden_layers"),
        ("hidden size", "hidden_size"),
        ("attention heads", "num_attention_heads"),
        ("key-value heads", "num_key_value_heads"),
        ("embedding rows", "vocab_size"),
        ("context", "max_position_embeddings"),
    ):
        if key in layout.config:
            rows.append((name, f"{layout.config[key]:,}"))
    return Table(("property", "value"), tuple(rows))


def _lineage(compared: Sequence[Ancestor]) -> str:
    return (
        "Every step that this model and its evaluation were made of. A key names a recipe, a digest the bytes that "
        f"came of it.\n\n{lineage_table(compared).markdown()}"
    )


def _licence(told: Told) -> str:
    terms = told.terms
    name = ", ".join(filter(None, [terms.license_name or terms.license, terms.license_link]))
    parts = [f"{name}: the strictest licence among what this model was made of."]
    rows = tuple((source.used_as, source.card_name, source.license) for source in told.sources)
    parts.append(Table(("used as", "name", "licence"), rows).markdown())
    return "\n\n".join([*parts, *terms.notices, *told.texts])
