import json
import math
import os
import random
import shutil
import socket
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import InputRecord
from tasks.benchmarks.cloze_items import Text
from tasks.benchmarks.declare import ClozeTasks
from tasks.benchmarks.loading import load_tasks
from tasks.evaluate.stage import STAGE, EvaluateGates, EvaluateRecipe
from tasks.evaluate.turns import deal
from tasks.exercises import Exercise, generate, is_correct
from tasks.logits.rows import make_row, read_rows, write_rows
from tasks.modeling.document_start import start_token
from tasks.modeling.statistics import ratio_with_error
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tasks.worker.spec import WorkerSpec
from tests.committed import objects_of

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


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def evaluated(run_stage: RunStage, inputs: dict[str, Artifact]) -> Artifact:
    return run_stage("evaluate", RECIPE, inputs)


def test_results_are_the_statistics_of_the_samples(evaluated: Artifact) -> None:
    files = objects_of(evaluated)
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


def test_cloze_items_are_answered_by_the_likeliest_word_of_plain_text(
    run_stage: RunStage,
    inputs: dict[str, Artifact],
    model_folder: ModelFolder,
    artifact_of: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    draw, words = random.Random(0), [a + b + c for a in string.ascii_lowercase for b in "aeiou" for c in "xyz"]
    rows = []
    for document in range(3):
        text = " ".join(draw.choices(words, k=120)) + "."
        rows.append(make_row([1, 2], [0, 1], text, "text", "test", f"{document}"))
    write_rows(tmp_path / "heldout.parquet", rows)
    cloze = {"type": "cloze", "items": 20, "choices": 3, "context_chars": 40}
    recipe = {**RECIPE, "tasks": [cloze], "bits_per_byte": False}
    files = objects_of(run_stage("evaluate", recipe, {**inputs, "corpus": artifact_of(tmp_path)}))
    [loaded] = load_tasks([ClozeTasks.model_validate(cloze)], 4, texts=[Text(row.document, row.text) for row in rows])
    documents = list(loaded.tasks["cloze"].eval_docs)
    for name, directory in (("base", model_folder(1)), ("final", model_folder(3, 40))):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
        tokenizer = load_tokenizer(directory)
        samples = lines(files[f"samples/{name}.jsonl"])
        assert [sample["prompt"] for sample in samples] == [each["context"] for each in documents], "no template"
        assert len({sample["cluster"] for sample in samples}) == 3
        for sample, document in zip(samples, documents, strict=True):
            scores = [word_logprob(model, tokenizer, document["context"], word) for word in document["choices"]]
            assert sample["outcome"] == float(scores.index(max(scores)) == document["answer"])
    results = json.loads(files["results.json"])
    assert results["models"]["base"]["entries"]["cloze"]["n"] == 20
    asked = results["harness"]["tasks"]["cloze"]
    assert (asked["output_type"], asked["plain_text"]) == ("multiple_choice", True)


@torch.no_grad()
def word_logprob(model: Any, tokenizer: Any, context: str, word: str) -> float:
    texts = (f"{context} {word}", context)
    start = start_token(model, tokenizer)
    whole, before = ([start, *tokenizer(text, add_special_tokens=False).input_ids] for text in texts)
    assert whole[: len(before)] == before
    logprobs_TV = model(torch.tensor([whole])).logits[0, :, : real_vocab_size(tokenizer)].log_softmax(-1)
    return float(sum(logprobs_TV[at - 1, whole[at]] for at in range(len(before), len(whole))))


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
        files = objects_of(run_stage("evaluate", {**RECIPE, "max_documents": limit}, several))
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
    samples = lines(objects_of(evaluated)["samples/final.jsonl"])
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
    first = objects_of(evaluated)
    for entry in list(evaluated.store.list(evaluated.directory)):
        evaluated.store.delete(entry.path)
    again = objects_of(run_stage("evaluate", RECIPE, inputs))
    assert again == first
    for name, data in first.items():
        for volatile in (str(tmp_path), socket.gethostname(), "/home/", "/root/"):
            assert volatile.encode() not in data, f"{volatile} in {name}"


def test_a_killed_evaluation_resumes_by_model_and_task(
    evaluated: Artifact, run_stage: RunStage, inputs: dict[str, Artifact]
) -> None:
    before = evaluated.receipts()
    results = objects_of(evaluated)["results.json"]
    parts = ("exercise_sort", "exercise_add", "bits")
    assert set(before) == {"main"} | {f"model-{name}-{part}" for name in ("base", "twin", "final") for part in parts}
    for lost in ({"model-twin-exercise_sort", "model-final-bits"}, {"model-twin-bits"}):
        for name in ("main", *lost):
            evaluated.store.delete(evaluated.path(f"shards/{name}.json"))
        evaluated.store.delete(evaluated.path("manifest.json"))
        again = run_stage("evaluate", RECIPE, inputs)
        after = again.receipts()
        assert {name for name in after if after[name].write_id != before[name].write_id} == {"main", *lost}
        assert objects_of(again)["results.json"] == results
        before = after


def test_what_was_measured_before_a_stop_is_kept(
    run_stage: RunStage, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a model, and in the middle of its tasks."""
    from tasks.evaluate import bench
    from tasks.worker.job import PreemptedError

    real, asked = bench.evaluate_entry, []

    def stopped(lm: Any, entry: Any, recipe: EvaluateRecipe) -> Any:
        asked.append(entry.name)
        if len(asked) == 2:
            raise PreemptedError
        return real(lm, entry, recipe)

    monkeypatch.setattr(bench, "evaluate_entry", stopped)
    with pytest.raises(PreemptedError):
        run_stage("evaluate", RECIPE, inputs)
    run_stage("evaluate", RECIPE, inputs)
    # Three models with two tasks each, one of which was begun twice.
    assert asked == ["exercise_sort", "exercise_add", "exercise_add", *["exercise_sort", "exercise_add"] * 2]


def worker_spec(inputs: dict[str, Artifact], tmp_path: Path) -> WorkerSpec:
    """Of a launch in processes of its own, written to spec.json."""
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
    return spec


def test_two_processes_deal_the_models_out_and_measure_the_same(
    evaluated: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    spec = worker_spec(inputs, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "tasks.evaluate.worker", "--spec", str(tmp_path / "spec.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = Artifact(inputs["corpus"].store, spec.directory)
    receipts = made.receipts()
    one = objects_of(evaluated)
    two = {entry.name: made.store.get(made.path(entry.path)) for entry in receipts["main"].objects}
    assert {name: two[name] for name in one} == one
    # Who measured is in the path of what was measured.
    paths = [entry.path for receipt in receipts.values() for entry in receipt.objects]
    assert {"-r1-" in path for path in paths} == {True, False}


def test_the_largest_model_goes_first_to_who_has_least() -> None:
    sizes = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 2.0}
    assert deal(sizes, 1) == [["b", "c", "d", "a"]]
    assert deal(sizes, 2) == [["b"], ["c", "d", "a"]]
    assert deal(sizes, 5) == [["b"], ["c"], ["d"], ["a"], []]


def test_a_process_of_its_own_needs_no_network_and_writes_only_scratch(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    spec = worker_spec(inputs, tmp_path)
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
    assert any(event["kind"] == "progress" and event["unit"] == "measurements" for event in events)


def test_bad_inputs_are_refused_before_the_work(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="'tein', which is not among its models"):
        run_stage("evaluate", {**RECIPE, "parents": ["tein"]}, inputs)
    fits = r"a prompt of task exercise_sort of \d+ tokens does not fit the context of base, 96, beside the 80 that"
    with pytest.raises(BadInputError, match=fits):
        run_stage("evaluate", {**RECIPE, "max_new_tokens": 80}, inputs)
    with pytest.raises(BadInputError, match="may generate 96 tokens, which does not fit the context of base, 96,"):
        run_stage("evaluate", {**RECIPE, "max_new_tokens": 96}, inputs)
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in model_folder(1).iterdir():
        if file.name != "chat_template.jinja":
            (plain / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BadInputError, match="has no chat template"):
        run_stage("evaluate", RECIPE, {**inputs, "model.base": plain})


def test_a_model_of_broken_numbers_ends_the_evaluation(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Its answers would be wrong, not missing; and NaN is never greater than a gate's bound."""
    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model_folder(1), tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    several = {**inputs, "model.twin": broken}
    with pytest.raises(
        BadInputError, match=r"model twin gives logits that are not finite on the held-out document \w+"
    ):
        run_stage("evaluate", RECIPE, several)
    with pytest.raises(BadInputError, match="model twin gives logits that are not finite on a prompt"):
        run_stage("evaluate", {**RECIPE, "bits_per_byte": False}, several)


def test_a_branch_whose_kl_is_no_number_is_refused(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder, artifact_of: Callable[..., Artifact]
) -> None:
    trained = {
        "model.final": artifact_of(model_folder(3, 40), {"heldout_kl": 0.5}),
        "model.twin": artifact_of(model_folder(2), {"heldout_kl": 0.0}),
    }
    with pytest.raises(
        BadInputError, match=r"KL of final is 0\.5 and that of its twin twin is 0\.0, of which there is no"
    ):
        run_stage("evaluate", {**RECIPE, "twins": {"final": "twin"}}, {**inputs, **trained})


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
    [mean] = STAGE.judge({**metrics, "mean_over_reference_z": -1.9}, EvaluateGates(min_mean_z=-2))
    assert (mean.gate, mean.passed) == ("min_mean_z", True)
    assert not STAGE.judge({**metrics, "mean_over_reference_z": -2.1}, EvaluateGates(min_mean_z=-2))[0].passed


def test_an_exercise_survives_the_harness_as_it_is() -> None:
    from tasks.benchmarks.exercise_tasks import _outcome

    document = {"kind": "add", "prompt": "Add: 1 + 2", "answer": "3", "difficulty": 1}
    assert _outcome(document, [" 3\n"]) == {"exact_match": 1.0}
    assert _outcome(document, ["3 4"]) == {"exact_match": 0.0}
    assert is_correct(Exercise(**document), "3")
