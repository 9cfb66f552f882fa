import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.evaluate.results import Measured, build_results
from tasks.evaluate.stage import STAGE, EvaluateGates, EvaluateRecipe
from tasks.exercises import Exercise, generate, is_correct
from tasks.logits.rows import make_row, read_rows, write_rows
from tasks.modeling.statistics import mean_with_error, ratio_with_error
from tasks.modeling.tokenizer_files import load_tokenizer

RunStage = Callable[..., Artifact]
ModelFolder = Callable[..., Path]
DATE = "26 Jul 2024"
ITEMS = 6
RECIPE: dict[str, Any] = {
    "tasks": [{"type": "exercises", "kinds": ["sort", "add"], "items_per_kind": ITEMS, "seed": 3}],
    "reference": "base",
    "candidate": "final",
    "parents": ["twin"],
    "max_new_tokens": 4,
    "template_date": "2024-07-26",
}


@pytest.fixture
def inputs(model_folder: ModelFolder, corpus_folder: Path, artifact_of: Callable[..., Artifact]) -> dict[str, Artifact]:
    """Three models, one of them with another tokenizer."""
    return {
        "model.base": artifact_of(model_folder(1)),
        "model.twin": artifact_of(model_folder(2)),
        "model.final": artifact_of(model_folder(3, 40)),
        "corpus": artifact_of(corpus_folder),
    }


def objects(artifact: Artifact) -> dict[str, bytes]:
    manifest = artifact.manifest()
    assert manifest is not None
    return {entry.name: artifact.store.get(artifact.path(entry.path)) for entry in manifest.objects}


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def evaluated(run_stage: RunStage, inputs: dict[str, Artifact]) -> Artifact:
    return run_stage("evaluate", RECIPE, inputs)


def test_results_are_the_statistics_of_the_samples(evaluated: Artifact) -> None:
    files = objects(evaluated)
    results = json.loads(files["results.json"])
    assert set(results["models"]) == {"base", "twin", "final"}
    for name, model in results["models"].items():
        samples = lines(files[f"samples/{name}.jsonl"])
        documents = lines(files[f"documents/{name}.jsonl"])
        assert model["accuracy"]["n"] == len(samples) == 2 * ITEMS
        assert model["accuracy"]["value"] == sum(sample["outcome"] for sample in samples) / (2 * ITEMS)
        assert set(model["tasks"]) == {"exercise_sort", "exercise_add"}
        assert model["tasks"]["exercise_add"]["n"] == ITEMS
        # Each kind of exercise is an entry of its own.
        assert model["entries"] == model["tasks"]
        bits, size = (sum(document[key] for document in documents) for key in ("bits", "num_bytes"))
        assert model["bits_per_byte"]["value"] == pytest.approx(bits / size)
        assert model["bits_per_byte"]["bytes"] == size
        assert model["bits_per_byte"]["documents"] == 3
    # The conversation in the corpus has no raw text of its own, so it is left out, for every tokenizer alike.
    sizes = {model["bits_per_byte"]["bytes"] for model in results["models"].values()}
    assert len(sizes) == 1
    digests = {name: model["tokenizer"]["digest"] for name, model in results["models"].items()}
    assert digests["base"] == digests["twin"] != digests["final"]

    assert {name: set(against) for name, against in results["paired"].items()} == {
        "twin": {"base"},
        "final": {"base", "twin"},
    }
    pair = results["paired"]["final"]["twin"]["bits_per_byte"]
    values = {name: results["models"][name]["bits_per_byte"]["value"] for name in ("final", "twin")}
    assert pair["difference"] == pytest.approx(values["final"] - values["twin"])

    manifest = evaluated.manifest()
    assert manifest is not None
    assert manifest.metrics["num_items"] == 2 * ITEMS
    assert manifest.metrics["worst_parent_excess"] == pytest.approx(values["final"] / values["twin"] - 1)
    assert manifest.metrics["models"]["final"]["accuracy"]["n"] == 2 * ITEMS


def test_a_document_in_pieces_is_one_document(
    run_stage: RunStage, inputs: dict[str, Artifact], corpus_folder: Path, tmp_path: Path
) -> None:
    """Four pieces of one text and two other texts: three documents, also where only the first two are wanted."""
    one, two, three = (row for row in read_rows(corpus_folder / "heldout.parquet") if row.kind == "text")
    pieces = [
        make_row(three.input_ids[at : at + 50], three.loss_mask[at : at + 50], text, "text", "test", three.document)
        for at, text in ((at, three.text[at : at + 50]) for at in range(0, 200, 50))
    ]
    folder = tmp_path / "pieces"
    folder.mkdir()
    write_rows(folder / "heldout.parquet", [*pieces, one, two])
    several = {**inputs, "corpus": folder}
    for limit, wanted in ((None, [three, one, two]), (2, [three, one])):
        files = objects(run_stage("evaluate", {**RECIPE, "max_documents": limit}, several))
        own = json.loads(files["results.json"])["models"]["final"]["bits_per_byte"]
        documents = lines(files["documents/final.jsonl"])
        assert [each["document"] for each in documents] == [row.document for row in wanted]
        assert documents[0]["num_bytes"] == sum(row.num_bytes for row in pieces)
        ratio = ratio_with_error([each["bits"] for each in documents], [each["num_bytes"] for each in documents])
        assert {name: own[name] for name in ratio} == ratio
        assert own["documents"] == len(wanted)
    write_rows(folder / "heldout.parquet", pieces)
    with pytest.raises(BadInputError, match="holds out 1 texts"):
        run_stage("evaluate", RECIPE, {**inputs, "corpus": folder})


def test_exercises_go_through_the_chat_template_with_the_pinned_date(
    evaluated: Artifact, model_folder: ModelFolder
) -> None:
    tokenizer = load_tokenizer(model_folder(3, 40))
    samples = lines(objects(evaluated)["samples/final.jsonl"])
    expected = [
        (f"exercise_{kind}", exercise) for kind in ("sort", "add") for exercise in generate(kind, "test", ITEMS, 3)
    ]
    for sample, (task, exercise) in zip(samples, expected, strict=True):
        assert sample["task"] == task
        assert sample["target"] == exercise.answer
        assert sample["outcome"] == is_correct(exercise, sample["completion"])
        assert sample["prompt"] == tokenizer.apply_chat_template(
            [{"role": "user", "content": exercise.prompt}],
            tokenize=False,
            add_generation_prompt=True,
            date_string=DATE,
        )
        assert sample["prompt"].startswith(f"Today: {DATE}\n<|im_start|>user\n")


def test_bytes_are_a_function_of_recipe_and_inputs(
    evaluated: Artifact, run_stage: RunStage, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    first = objects(evaluated)
    for entry in list(evaluated.store.list(evaluated.directory)):
        evaluated.store.delete(entry.path)
    again = objects(run_stage("evaluate", RECIPE, inputs))
    assert again == first
    for name, data in first.items():
        for volatile in (str(tmp_path), socket.gethostname(), "/home/", "/root/"):
            assert volatile.encode() not in data, f"{volatile} in {name}"


def test_a_killed_evaluation_resumes_by_model(
    evaluated: Artifact, run_stage: RunStage, inputs: dict[str, Artifact]
) -> None:
    before = evaluated.receipts()
    results = objects(evaluated)["results.json"]
    for name in ("manifest.json", "shards/main.json", "shards/model-twin.json"):
        evaluated.store.delete(evaluated.path(name))
    again = run_stage("evaluate", RECIPE, inputs)
    after = again.receipts()
    assert {name for name in after if after[name].write_id != before[name].write_id} == {"main", "model-twin"}
    assert objects(again)["results.json"] == results


def test_a_process_of_its_own_needs_no_network_and_writes_only_scratch(
    run_stage: RunStage, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    from tasks.artifacts.manifest import InputRecord
    from tasks.worker.spec import WorkerSpec

    records = {}
    for role, artifact in inputs.items():
        manifest = artifact.manifest()
        assert manifest is not None
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    spec = WorkerSpec(
        stage="evaluate",
        label="evaluate",
        key="0" * 64,
        attempt="01234567",
        store=inputs["corpus"].store.uri,
        directory="artifacts/evaluate/evaluate-0000000000000000",
        scratch=str(tmp_path / "scratch"),
        input_cache=str(tmp_path / "inputs"),
        recipe=RECIPE,
        runtime={},
        inputs=records,
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    home = tmp_path / "home"
    home.mkdir()
    # A proxy that nobody listens at: whatever asks the network fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **nowhere,
    }
    command = [sys.executable, "-m", "tasks.evaluate.worker", "--spec", str(tmp_path / "spec.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "main" in Artifact(inputs["corpus"].store, spec.directory).receipts()
    assert list(home.rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} == {"store", "scratch", "inputs", "home", "spec.json"}
    events = [json.loads(line) for line in (tmp_path / "scratch" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["message"] == "main"
    assert any(event["kind"] == "progress" and event["unit"] == "models" for event in events)


def test_the_end_token_stops_an_answer_and_settings_of_the_model_do_not_bend_it(model_folder: ModelFolder) -> None:
    import torch
    from transformers import GenerationConfig

    from tasks.benchmarks.exercise_tasks import exercise_tasks
    from tasks.benchmarks.loading import LoadedTasks
    from tasks.evaluate.harness import ExactLM, evaluate_tasks
    from tasks.evaluate.stage import ExerciseTasks
    from tasks.modeling.model_files import load_causal_lm

    recipe = EvaluateRecipe.model_validate(RECIPE)
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
    lm = ExactLM(model, tokenizer, recipe, batch_size=64, before_batch=lambda: None)
    entry = recipe.tasks[0]
    assert isinstance(entry, ExerciseTasks)
    tasks = {task.task_name: task for task in exercise_tasks(entry, recipe.max_new_tokens)}
    items, versions = evaluate_tasks(lm, [LoadedTasks(tasks, "exact_match", "none", None)], recipe)
    assert {item.completion for item in items} == {"7"}
    assert versions["exercise_add"] == {"version": "1", "num_fewshot": 0, "metric": "exact_match"}
    # Prompts of different lengths in one batch, padded on the left; two steps for all of them.
    assert [tuple(call.shape) for call in calls][1:] == [(2 * ITEMS, 1)]
    assert (calls[0][:, -1] == newline).all()
    assert (calls[0][:, 0] == tokenizer.pad_token_id).any()


def test_multiple_choice_tasks_of_the_harness_give_items_too(model_folder: ModelFolder) -> None:
    import torch
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    from tasks.benchmarks.loading import LoadedTasks, check_metric
    from tasks.evaluate.harness import ExactLM, evaluate_tasks
    from tasks.modeling.model_files import load_causal_lm

    questions = [
        {"question": f"{number} or more?", "choices": ["no", "yes"], "label": number % 2} for number in range(5)
    ]
    task = ConfigurableTask(
        config={
            "task": "choices",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(questions)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "f1", "aggregation": "f1", "higher_is_better": True},
            ],
            "num_fewshot": 0,
        }
    )
    check_metric("choices", task, "acc")
    with pytest.raises(BadInputError, match="no metric 'f1' that is a mean over items; choose one of: acc"):
        check_metric("choices", task, "f1")
    recipe = EvaluateRecipe.model_validate(RECIPE)
    tokenizer = load_tokenizer(model_folder(1))
    model = load_causal_lm(model_folder(1), dtype=torch.float32)
    lm = ExactLM(model, tokenizer, recipe, batch_size=4, before_batch=lambda: None)
    items, _ = evaluate_tasks(lm, [LoadedTasks({"choices": task}, "acc", "none", 4)], recipe)
    assert [item.item for item in items] == [0, 1, 2, 3]
    assert {item.entry for item in items} == {"choices"}
    named, _ = evaluate_tasks(lm, [LoadedTasks({"choices": task}, "acc", "none", 4, "group")], recipe)
    assert {(item.entry, item.task) for item in named} == {("group", "choices")}
    assert items[3].prompt.startswith(f"Today: {DATE}\n<|im_start|>user\n3 or more?")
    assert {item.outcome for item in items} <= {0.0, 1.0}
    with pytest.raises(BadInputError, match="no filter 'strict'; choose one of: none"):
        evaluate_tasks(lm, [LoadedTasks({"choices": task}, "acc", "strict", 4)], recipe)


def test_bad_inputs_are_refused_before_the_work(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="'tein', which is not among its models"):
        run_stage("evaluate", {**RECIPE, "parents": ["tein"]}, inputs)
    kinds = [{"type": "exercises", "kinds": ["sword"]}]
    with pytest.raises(BadInputError, match="no kind of exercise 'sword'"):
        run_stage("evaluate", {**RECIPE, "tasks": kinds}, inputs)
    with pytest.raises(BadInputError, match="does not fit the model's context"):
        run_stage("evaluate", {**RECIPE, "max_new_tokens": 80}, inputs)
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in model_folder(1).iterdir():
        if file.name != "chat_template.jinja":
            (plain / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BadInputError, match="has no chat template"):
        run_stage("evaluate", RECIPE, {**inputs, "model.base": plain})


def test_a_group_has_the_mean_over_the_items_of_its_tasks() -> None:
    outcomes = {"bbh_snarks": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], "bbh_dates": [0.0, 0.0]}
    items = [
        {"entry": "leaderboard_bbh", "task": task, "item": item, "outcome": outcome}
        for task, own in outcomes.items()
        for item, outcome in enumerate(own)
    ]
    tasks = {task: {"version": "1", "num_fewshot": 3, "metric": "acc_norm"} for task in outcomes}
    about = {"harness": {"lm_eval": "0", "tasks": tasks}, "tokenizer": {}}
    recipe = EvaluateRecipe.model_validate({**RECIPE, "parents": [], "bits_per_byte": False})
    results = build_results({name: Measured(items, [], about) for name in ("base", "final")}, recipe)
    pooled = mean_with_error([*outcomes["bbh_snarks"], *outcomes["bbh_dates"]])
    # Not the mean of the tasks' means, 0.333.
    assert pooled["value"] == 0.5
    assert results["models"]["final"]["entries"] == {"leaderboard_bbh": {"metric": "acc_norm", **pooled}}
    assert set(results["models"]["final"]["tasks"]) == set(outcomes)


def test_gates() -> None:
    metrics = {"candidate_over_reference_z": 2.5, "worst_parent_excess": 0.03, "num_items": 100}
    gates = EvaluateGates(min_paired_z=2, max_bits_per_byte_excess=0.02, min_items=200)
    assert {each.gate: each.passed for each in STAGE.judge(metrics, gates)} == {
        "min_paired_z": True,
        "max_bits_per_byte_excess": False,
        "min_items": False,
    }
    unknown = {**metrics, "candidate_over_reference_z": None}
    assert not STAGE.judge(unknown, EvaluateGates(min_paired_z=-math.pi))[0].passed
    assert STAGE.judge(metrics, EvaluateGates()) == []


def test_an_exercise_survives_the_harness_as_it_is() -> None:
    from tasks.benchmarks.exercise_tasks import _outcome

    document = {"kind": "add", "prompt": "Add: 1 + 2", "answer": "3", "difficulty": 1}
    assert _outcome(document, [" 3\n"]) == {"exact_match": 1.0}
    assert _outcome(document, ["3 4"]) == {"exact_match": 0.0}
    assert is_correct(Exercise(**document), "3")
