"""The harness around one model: what it asks, and what it refuses to cut, drop or let pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.checks import check_metric
from tasks.benchmarks.declare import ExerciseTasks
from tasks.benchmarks.exercise_tasks import exercise_tasks
from tasks.benchmarks.loading import LoadedTasks
from tasks.evaluate.exact_lm import ExactLM
from tasks.evaluate.harness import evaluate_entry
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size

ModelFolder = Callable[..., Path]
DATE = "26 Jul 2024"
ITEMS = 6
RECIPE = EvaluateRecipe.model_validate(
    {
        "tasks": [{"type": "exercises", "kinds": ["sort", "add"], "items_per_kind": ITEMS, "seed": 3}],
        "reference": "base",
        "candidate": "final",
        "max_new_tokens": 4,
    }
)


def choices(question: str = "{{number}} or more?", description: str = "", **changes: Any) -> ConfigurableTask:
    """Five questions with two choices each."""
    questions = [
        {"number": number, "choices": ["no", "yes"], "label": number % 2, "source": f"s{number // 2}"}
        for number in range(5)
    ]
    return ConfigurableTask(
        config={
            "task": "choices",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(questions)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "description": description,
            "doc_to_text": question,
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "f1", "aggregation": "f1", "higher_is_better": True},
            ],
            "num_fewshot": 0,
            **changes,
        }
    )


@pytest.fixture
def tokenizer(model_folder: ModelFolder) -> PreTrainedTokenizerFast:
    return load_tokenizer(model_folder(1))


@pytest.fixture
def around(model_folder: ModelFolder, tokenizer: PreTrainedTokenizerFast) -> Callable[..., ExactLM]:
    """around(recipe) is the harness around a model called final."""

    def make(recipe: EvaluateRecipe = RECIPE) -> ExactLM:
        model = load_causal_lm(model_folder(1), dtype=torch.float32)
        return ExactLM("final", model, tokenizer, recipe, batch_size=4, before_batch=lambda: None)

    return make


def test_the_end_token_stops_an_answer_and_settings_of_the_model_do_not_bend_it(model_folder: ModelFolder) -> None:
    recipe = RECIPE
    directory = model_folder(1)
    tokenizer = load_tokenizer(directory)
    model = load_causal_lm(directory, dtype=torch.float32)
    # A model that says "7" after the prompt's last token, then ends, then would go on with "8".
    seven, eight = tokenizer.encode("78")
    newline = tokenizer.encode("\n")[0]
    table = torch.zeros(model.config.vocab_size, model.config.vocab_size)
    table[newline, seven] = table[seven, tokenizer.eos_token_id] = table[tokenizer.eos_token_id, eight] = 9.0
    calls: list[torch.Tensor] = []

    def forward(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        calls.append(kwargs["input_ids"])
        output.logits = table[kwargs["input_ids"][:, -1:]]
        return output

    model.register_forward_hook(forward, with_kwargs=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, repetition_penalty=50.0, temperature=0.7, do_sample=True
    )
    lm = ExactLM("final", model, tokenizer, recipe, batch_size=64, before_batch=lambda: None)
    entry = recipe.tasks[0]
    assert isinstance(entry, ExerciseTasks)
    tasks = {task.task_name: task for task in exercise_tasks(entry, recipe.max_new_tokens)}
    items, harness = evaluate_entry(lm, LoadedTasks("exercises", tasks, "exact_match"), recipe)
    assert {item.completion for item in items} == {"7"}
    about = harness["tasks"]["exercise_add"]
    assert (about["version"], about["num_fewshot"], about["metric"]) == ("1", 0, "exact_match")
    # Prompts of different lengths in one batch, padded on the left; two steps for all of them.
    assert [tuple(call.shape) for call in calls][1:] == [(2 * ITEMS, 1)]
    assert (calls[0][:, -1] == newline).all()
    assert (calls[0][:, 0] == tokenizer.pad_token_id).any()


def test_multiple_choice_tasks_of_the_harness_give_items_too(around: Callable[..., ExactLM]) -> None:
    task = choices()
    check_metric("choices", task, "acc")
    with pytest.raises(BadInputError, match="no metric 'f1' that is a mean over items; choose one of: acc"):
        check_metric("choices", task, "f1")
    lm = around()
    items, _ = evaluate_entry(lm, LoadedTasks("group", {"choices": task}, "acc", limit=4), RECIPE)
    assert [item.item for item in items] == [0, 1, 2, 3]
    assert {(item.entry, item.task, item.cluster) for item in items} == {("group", "choices", None)}
    assert len({item.document for item in items}) == 4
    assert items[3].prompt.startswith(f"Today: {DATE}\n<|im_start|>user\n3 or more?")
    assert {item.outcome for item in items} <= {0.0, 1.0}
    clustered, _ = evaluate_entry(lm, LoadedTasks("group", {"choices": task}, "acc", cluster="source"), RECIPE)
    assert [item.cluster for item in clustered] == [f"choices/s{number // 2}" for number in range(5)]
    with pytest.raises(BadInputError, match="no filter 'strict'; choose one of: none"):
        evaluate_entry(lm, LoadedTasks("choices", {"choices": task}, "acc", "strict", 4), RECIPE)


def test_a_template_that_asks_the_clock_is_told_the_recipes_date(
    around: Callable[..., ExactLM], tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = (
        "It is {{ strftime_now('%d %b %Y') }}.{% for m in messages %} {{ m['content'] }}{% endfor %}"
    )
    items, _ = evaluate_entry(around(), LoadedTasks("choices", {"choices": choices()}, "acc"), RECIPE)
    assert items[0].prompt == f"It is {DATE}. 0 or more?"


def test_a_template_that_refuses_a_turn_ends_the_evaluation_instead_of_losing_it(
    around: Callable[..., ExactLM], tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    lm = around()
    assert evaluate_entry(lm, LoadedTasks("choices", {"choices": choices()}, "acc"), RECIPE)[0]
    described = LoadedTasks("choices", {"choices": choices(description="Judge a number.")}, "acc")
    said = r"template of final does not render a conversation of the roles system, user \(System role not supported\)"
    with pytest.raises(BadInputError, match=said):
        evaluate_entry(lm, described, RECIPE)


@pytest.mark.parametrize("generated", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_and_one_that_just_fits_is_not(
    around: Callable[..., ExactLM], tokenizer: PreTrainedTokenizerFast, generated: bool
) -> None:
    """Without a template a prompt is its question, one token a byte; the longer of a question's choices has 4 more."""
    lm, recipe = around(), RECIPE.model_copy(update={"apply_chat_template": False})
    room = lm.max_length - 4 if generated else lm.max_length + 1 - len(" yes")
    settings = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "source",
        "generation_kwargs": {"until": [], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }

    def asked(length: int) -> LoadedTasks:
        task = choices("x" * length, **(settings if generated else {}))
        return LoadedTasks("choices", {"choices": task}, "exact_match" if generated else "acc")

    assert len(evaluate_entry(lm, asked(room), recipe)[0]) == 5
    with pytest.raises(
        BadInputError, match=r"a prompt of task choices of .* tokens does not fit the context of final, 96"
    ):
        evaluate_entry(lm, asked(room + 1), recipe)


def test_rows_that_only_pad_the_embedding_are_no_answers(
    around: Callable[..., ExactLM], tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = around()
    generated = {task.task_name: task for task in exercise_tasks(_exercises(), 4)}
    entries = [LoadedTasks("choices", {"choices": choices()}, "acc"), LoadedTasks("all", generated, "exact_match")]
    put = [float("-inf")]

    def pad(_module: Any, _args: Any, output: Any) -> Any:
        output.logits[..., real_vocab_size(tokenizer) :] = put[0]
        return output

    lm.model.register_forward_hook(pad)
    without = [evaluate_entry(lm, entry, RECIPE)[0] for entry in entries]
    put[0] = 1e4
    assert [evaluate_entry(lm, entry, RECIPE)[0] for entry in entries] == without


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused_and_tokens_that_are_ruled_out_are_not(
    around: Callable[..., ExactLM], value: float
) -> None:
    lm = around()
    generated = {task.task_name: task for task in exercise_tasks(_exercises(), 4)}
    entries = [LoadedTasks("choices", {"choices": choices()}, "acc"), LoadedTasks("all", generated, "exact_match")]
    put: list[float] = []

    def spoil(_module: Any, _args: Any, output: Any) -> Any:
        for each in put:
            output.logits[..., 7] = each
        return output

    lm.model.register_forward_hook(spoil)
    put[:] = [float("-inf")]
    for entry in entries:
        assert evaluate_entry(lm, entry, RECIPE)[0]
    put[:] = [value]
    for entry in entries:
        with pytest.raises(BadInputError, match="the model final gives logits that are not finite on a prompt"):
            evaluate_entry(lm, entry, RECIPE)


def _exercises() -> ExerciseTasks:
    (entry,) = RECIPE.tasks
    assert isinstance(entry, ExerciseTasks)
    return entry
