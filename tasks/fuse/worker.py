"""Merges the branches with mergekit, after making sure that their rows mean the same tokens."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open
from transformers import AutoConfig

from tasks.artifacts.errors import BadInputError
from tasks.fuse.alike import check_alike
from tasks.fuse.quality import measure_fusion
from tasks.fuse.stage import BASE, FuseRecipe, FuseRuntime
from tasks.modeling.model_files import (
    TOKEN_ID_FIELDS,
    copy_tokenizer_files,
    num_rows,
    read_json,
    resolve_device,
    weights_directory,
    write_config,
)
from tasks.modeling.weight_files import MAX_FILE_BYTES
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """The merged model and merge_config.yml."""
    started = time.monotonic()
    recipe, runtime = FuseRecipe.model_validate(job.recipe), FuseRuntime.model_validate(job.runtime)
    directories = _input_directories(job, recipe)
    check_alike(directories, recipe.chat_from, job.log)
    configuration = MergeConfiguration.model_validate(recipe.mergekit_config())

    # mergekit gives "@" and "+" in a path a meaning: models are links named as in the recipe, in the current folder.
    staging = job.new_directory("merge")
    for name, directory in directories.items():
        (staging / name).symlink_to(weights_directory(directory).resolve(), target_is_directory=True)
    _begin(job, 0)
    # It also keeps open files by the name of the model, for the life of the process.
    LoaderCache.loaders.clear()
    with contextlib.chdir(staging):
        run_merge(
            configuration,
            "out",
            MergeOptions(
                device=resolve_device(runtime.device).type,
                low_cpu_memory=runtime.low_cpu_memory,
                out_shard_size=MAX_FILE_BYTES,
                copy_tokenizer=False,
                write_model_card=False,
                random_seed=recipe.seed,
                quiet=True,
            ),
        )
    LoaderCache.loaders.clear()

    out = staging / "out"
    _write_configs(out, recipe, directories)
    copy_tokenizer_files(directories[recipe.chat_from], out)
    # Sorted, since the order of settings is in no key.
    (out / "merge_config.yml").write_text(yaml.safe_dump(recipe.mergekit_config(), sort_keys=True), encoding="utf-8")
    _begin(job, 1)
    leave = job.leave_if_asked
    num_parameters, distances = _distances(out, {name: staging / name for name in directories}, leave)
    _begin(job, 2)
    quality = measure_fusion(
        out,
        directories[BASE],
        {name: directories[name] for name in recipe.branches},
        directories[recipe.chat_from],
        resolve_device(runtime.device),
        before_model=leave,
    )
    job.complete(
        out,
        {
            **quality,
            "parameters": num_parameters,
            "num_rows": num_rows(out),
            "relative_distance": distances,
            "seconds": time.monotonic() - started,
        },
    )


def _input_directories(job: Job, recipe: FuseRecipe) -> dict[str, Path]:
    given = job.inputs("branch")
    if set(given) != set(recipe.branches):
        raise BadInputError(
            f"fuse has the branches {sorted(given)} as inputs and {sorted(recipe.branches)} in recipe.models; name the "
            f"same ones in both"
        )
    return {
        BASE: job.input(BASE).directory(),
        **{name: branch.directory() for name, branch in given.items()},
    }


def _write_configs(out: Path, recipe: FuseRecipe, directories: dict[str, Path]) -> None:
    """config.json of the merge base, and generation_config.json, both with the token ids of the model that chats.

    mergekit's own config.json is that of the base too; without a base it would be any model's, a chance one.
    """
    base = weights_directory(directories[recipe.base_model or BASE])
    described = AutoConfig.from_pretrained(base, trust_remote_code=False)
    described.dtype = recipe.out_dtype
    described.save_pretrained(out)
    source = weights_directory(directories[recipe.chat_from])
    chat_config = read_json(source / "config.json")
    ids = {name: chat_config[name] for name in TOKEN_ID_FIELDS if chat_config.get(name) is not None}
    config = {name: value for name, value in read_json(out / "config.json").items() if name not in TOKEN_ID_FIELDS}
    write_config(out / "config.json", {**config, **ids})
    stored = source / "generation_config.json"
    generation = read_json(stored) if stored.is_file() else {}
    given = {name: value for name, value in generation.items() if value is not None}
    write_config(out / "generation_config.json", {**ids, **given})


def _begin(job: Job, step: int) -> None:
    """Begins a step, unless a stop was asked for. Nothing of an unfinished merge is kept: a next launch starts anew."""
    job.leave_if_asked()
    job.progress(step, 3, "steps")


def _distances(
    out: Path, models: dict[str, Path], after_tensor: Callable[[], None]
) -> tuple[int, dict[str, float | None]]:
    """Number of parameters, and ‖merged − model‖ / ‖model‖ over all tensors, for each model; None if not finite."""
    num_parameters = 0
    squares = {name: [0.0, 0.0] for name in models}
    files = {name: _tensor_files(directory) for name, directory in models.items()}
    for tensor_name, merged in _tensors(out):
        num_parameters += merged.numel()
        for name, of_tensor in files.items():
            with safe_open(of_tensor[tensor_name], framework="pt") as file:
                tensor = file.get_tensor(tensor_name).float()
            squares[name][0] += float((merged.float() - tensor).square().sum(dtype=torch.float64))
            squares[name][1] += float(tensor.square().sum(dtype=torch.float64))
        after_tensor()
    distances = {name: math.sqrt(moved / norm) for name, (moved, norm) in squares.items()}
    return num_parameters, {name: value if math.isfinite(value) else None for name, value in distances.items()}


def _tensor_files(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _tensors(directory: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)


if __name__ == "__main__":
    worker_main(run)
