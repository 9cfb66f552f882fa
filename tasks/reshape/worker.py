"""Writes a model in another form: its config, its tensors, and the tokenizer so that the ids stay the same."""

from __future__ import annotations

import time

import torch

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import (
    copy_tokenizer_files,
    num_rows,
    read_json,
    save_generation_config,
    weights_directory,
    write_config,
)
from tasks.reshape.architecture import as_qwen2, check_plain, with_layers
from tasks.reshape.stage import ReshapeRecipe
from tasks.reshape.tensors import reshaped, write_tensors
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """The model of the input "model" in the form that the recipe asks for."""
    started = time.monotonic()
    recipe = ReshapeRecipe.model_validate(job.recipe)
    directory = job.input("model").directory()
    source = weights_directory(directory)
    if not (source / "config.json").is_file():
        raise BadInputError("the input of reshape is a tokenizer without a model; give it a model")
    values = read_json(source / "config.json")
    check_plain(values)
    if recipe.architecture is not None:
        values = as_qwen2(values)
    if recipe.keep_layers is not None:
        values = with_layers(values, recipe.keep_layers)
    out = job.new_directory("out")
    job.progress(0, 2, "steps")
    num_parameters, dtypes = write_tensors(
        reshaped(
            source,
            keep_layers=recipe.keep_layers,
            biases=recipe.architecture == "qwen2",
            dtype=None if recipe.dtype is None else getattr(torch, recipe.dtype),
        ),
        out,
    )
    job.progress(1, 2, "steps")
    if recipe.dtype is not None:
        values = {name: value for name, value in values.items() if name != "torch_dtype"} | {"dtype": recipe.dtype}
    write_config(out / "config.json", values)
    stored = source / "generation_config.json"
    if stored.is_file():
        write_config(out / "generation_config.json", read_json(stored))
    else:
        save_generation_config(out, None)
    copy_tokenizer_files(directory, out)
    job.complete(
        out,
        {
            "parameters": num_parameters,
            "dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in dtypes),
            "layers": int(values["num_hidden_layers"]),
            "num_rows": num_rows(out),
            "seconds": time.monotonic() - started,
        },
    )


if __name__ == "__main__":
    worker_main(run)
