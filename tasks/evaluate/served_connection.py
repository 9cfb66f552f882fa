"""A served model made ready: its client, once it is known that the server can do what the tasks ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.loading import LoadedTasks
from tasks.evaluate.served import ModelServer
from tasks.evaluate.served_lm import ServedChat, ServedCompletions
from tasks.evaluate.served_probe import probe
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.model_files import weights_directory
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.runtime.endpoint import key_from_environment
from tasks.worker.job import InputArtifact, Job


def served_lm(
    name: str,
    recipe: EvaluateRecipe,
    server: ModelServer,
    models: Mapping[str, InputArtifact],
    tasks: Sequence[LoadedTasks],
    job: Job,
) -> ServedChat | ServedCompletions:
    """The client of one served model, once it is known that the server can do what the tasks ask.

    Raises:
        BadInputError: it cannot, or the key or the model's name is wrong.
        ServerError: it does not answer now.
    """
    served = recipe.served[name]
    kinds = {task: made.OUTPUT_TYPE for entry in tasks for task, made in entry.tasks.items()}
    scoring = next((task for task, kind in kinds.items() if kind != "generate_until"), "")
    if scoring and served.api == "chat":
        raise BadInputError(
            f"task {scoring} ({kinds[scoring]}) needs the log-probabilities of its prompts, which no chat interface "
            f"returns; set evaluate.recipe.served.{name}.api to completions, or leave out the task or the model"
        )
    key = key_from_environment(server.api_key_env, f"evaluate.runtime.servers.{name}.api_key_env")
    base = server.base_url.rstrip("/")
    options: dict[str, Any] = {
        "model": served.model,
        "num_concurrent": server.concurrency,
        "max_retries": server.max_tries,
        "timeout": server.timeout_seconds,
        "seed": recipe.seed,
    }
    if served.api == "chat":
        probe(name, served, server, key, [], "")
        chat = ServedChat(base_url=f"{base}/chat/completions", **options)
        chat.set_up(name, served, recipe, key, job)
        return chat
    assert served.tokenizer is not None
    directory = models[served.tokenizer].directory()
    tokenizer = load_tokenizer(directory)
    probe(name, served, server, key, tokenizer("The sky is blue.").input_ids, scoring)
    lm = ServedCompletions(
        base_url=f"{base}/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(directory),
        max_length=served.context_tokens,
        # As for models that are loaded here: the template writes its own BOS, else the tokenizer does.
        add_bos_token=not recipe.apply_chat_template,
        **options,
    )
    lm.set_up(name, served, recipe, key, job)
    config = AutoConfig.from_pretrained(weights_directory(directory), trust_remote_code=False)
    lm.read_with(tokenizer, config.get_text_config().bos_token_id)
    return lm
