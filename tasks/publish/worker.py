"""Lays out the final model with its card, and brings it to the target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import tree_sha256
from tasks.publish.card import Told, build_card, notice_text
from tasks.publish.hub import push
from tasks.publish.layout import read_layout, with_rope_theta
from tasks.publish.lineage import ancestors, made, making, marker
from tasks.publish.stage import PublishRecipe, PublishRuntime
from tasks.publish.texts import texts_lines, texts_of
from tasks.worker.job import InputArtifact, Job, worker_main

_SUFFIXES = {".safetensors", ".json", ".jinja"}
_NAMES = {"merges.txt", "vocab.txt"}


def run(job: Job) -> None:
    recipe = PublishRecipe.model_validate(job.recipe)
    runtime = PublishRuntime.model_validate(job.runtime)
    model, evaluation = job.input("model"), job.input("evaluation")
    results = evaluation.json("results.json")
    candidate = results["candidate"]
    evaluated = evaluation.manifest.inputs.get(f"model.{candidate}")
    if evaluated is None or evaluated.digest != model.record.digest:
        raise BadInputError(
            f"the evaluation {evaluation.artifact.uri} measured another model as {candidate!r} than "
            f"{model.artifact.uri}; evaluate the model that is to be published"
        )
    target = _target_directory(recipe, runtime)
    lineage = ancestors(job.store, [model.record])
    sources, terms = recipe.terms_of(made(lineage), model.record.key)
    own_lineage = making(lineage, model.record.key)
    texts = texts_of(job.store, own_lineage, sources, recipe.license_texts)
    missing = recipe.check_texts(sources, {text.license for text in texts if text.is_license})
    directory = _lay_out(job, model)
    for text in texts:
        (directory / text.name).write_bytes(text.data)
    told = Told(
        recipe=recipe,
        layout=read_layout(directory, model.artifact.uri),
        results=results,
        lineage=own_lineage,
        compared=ancestors(job.store, [model.record, evaluation.record]),
        sources=sources,
        terms=terms,
        texts=texts_lines(texts, missing),
        marker=marker(model.manifest),
    )
    build_card(told).save(directory / "README.md")
    if notice := notice_text(terms, told.texts):
        (directory / "NOTICE").write_text(notice, encoding="utf-8")
    job.progress(1, 2, "steps")
    # The target comes before the receipt: an upload that failed is tried again, and a repeated one changes nothing.
    if target is not None:
        _copy(directory, target)
    if recipe.target == "hub":
        push(directory, recipe.repo_name, private=runtime.private, marker=told.marker, title=recipe.title)
    own = results["models"][candidate]
    job.complete(
        directory,
        {
            "repo_name": recipe.repo_name,
            "license": terms.license_name or terms.license,
            "target": recipe.target,
            "num_ancestors": len(told.compared),
            "accuracy": own["accuracy"],
            "bits_per_byte": own.get("bits_per_byte"),
        },
    )


def _target_directory(recipe: PublishRecipe, runtime: PublishRuntime) -> Path | None:
    if recipe.target != "directory":
        return None
    if runtime.directory is None:
        raise BadInputError("publish.recipe.target is directory: set publish.runtime.directory to the folder")
    return Path(runtime.directory).expanduser()


def _lay_out(job: Job, model: InputArtifact) -> Path:
    source = model.directory()
    if model.manifest.object("reference.json") is not None:
        raise BadInputError(f"{model.artifact.uri} only refers to a model on the hub, so there is nothing to publish")
    directory = job.new_directory("publish")
    for entry in model.manifest.objects:
        if "/" in entry.name and Path(entry.name).suffix == ".safetensors":
            raise BadInputError(
                f"{model.artifact.uri} has the weights {entry.name} in a folder, where nothing looks for them; export "
                f"the model with its weights at the root"
            )
        if "/" not in entry.name and (Path(entry.name).suffix in _SUFFIXES or entry.name in _NAMES):
            (directory / entry.name).symlink_to((source / entry.name).resolve())
    _complete_config(directory / "config.json")
    return directory


def _complete_config(file: Path) -> None:
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    if (complete := with_rope_theta(config)) != config:
        # The link leads to the model's own file.
        file.unlink()
        file.write_text(json.dumps(complete, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy(directory: Path, target: Path) -> None:
    if target.exists():
        if tree_sha256(target) != tree_sha256(directory):
            raise BadInputError(f"{target} exists with other content; name another in publish.runtime.directory")
        return
    # Whole or not at all: a killed copy leaves only the partial folder, which the next one replaces.
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(directory, partial)
    partial.rename(target)


if __name__ == "__main__":
    worker_main(run)
