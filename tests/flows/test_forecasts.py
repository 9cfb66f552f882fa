"""The forecast of each stage: what a runtime, a mixture, a long row or a small node changes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.costs import CostOptions
from flows.dag import build
from flows.forecast_text import TrainingText, training_text
from flows.forecasts import Forecasts
from flows.model_sizes import Sizes
from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import open_store
from tasks.planning.forecast import Forecast
from tasks.planning.hardware import OWN_TABLE
from tasks.planning.logit_bytes import by_mass_alone
from tasks.planning.text import Documents
from tasks.runtime.declare import Step
from tasks.surgeon.batches import BY_TOKENSURGEON, PURSUED_ON_CPU, PURSUED_ON_GPU

DUMP, DISTILL = "branches.llama.dump_logits", "branches.llama.distill"


def steps_of(profile: str, *overrides: str) -> dict[str, Step]:
    return {step.label: step for step in build(load_profile(profile, overrides))}


def sizes_in(folder: Path, *assumed: str) -> Sizes:
    return Sizes(open_store(str(folder / "empty")), CostOptions.read(assume=assumed).given, None, set())


def forecast(
    folder: Path, label: str, *overrides: str, profile: str = "medius", assumed: tuple[str, ...] = ()
) -> Forecast:
    """Of one stage of a profile over an empty store."""
    sizes = sizes_in(folder, *assumed)
    return Forecasts(sizes, CostOptions.read(assume=assumed).given).of(steps_of(profile, *overrides)[label])


# Trainings


def test_whole_passes_are_charged(tmp_path: Path) -> None:
    profile = forecast(tmp_path, "distill-llama")
    # 8 × 16,384 tokens hold nearly the mean step, and two of three need a second round.
    narrow = forecast(tmp_path, "distill-llama", f"{DISTILL}.runtime.micro_batch_tokens=16384")
    assert narrow.seconds["compute"] > 1.3 * profile.seconds["compute"]
    assert narrow.seconds["traffic"] > 1.3 * profile.seconds["traffic"]
    # Every pass gathers all weights twice.
    small = forecast(tmp_path, "distill-llama", f"{DISTILL}.runtime.micro_batch_tokens=4096")
    assert small.seconds["traffic"] > 4 * profile.seconds["traffic"]


def test_epochs_with_replay_are_of_the_instructions(tmp_path: Path) -> None:
    sets = ["fine_tuning.replay={branch: qwen}", "fine_tuning.sft.recipe.replay={weight: 0.2}"]
    text, alone = (training_text(steps_of("medius", *each)["sft"], sizes_in(tmp_path)) for each in (sets, []))
    assert text.rows == pytest.approx(alone.rows / 0.8, rel=1e-3)


@pytest.mark.parametrize("label", ["distill-llama", "distill-qwen"])
def test_the_passes_of_the_production_profile_are_nearly_whole(tmp_path: Path, label: str) -> None:
    found = forecast(tmp_path, label)
    model = sizes_in(tmp_path).model(steps_of("medius")[label])
    # Forward, backward and forward again, of the learnt tokens alone, each with the 4,096 of its row.
    pairs = 4096 * found.tokens
    least = found.tokens * (8 * model.shape.layer_weights + 6 * model.shape.head_weights)
    least += 16 * pairs * model.shape.attention_width
    assert least < found.flops < 1.35 * least


def test_steps_in_which_only_the_embedding_learns_cost_as_much_as_others(tmp_path: Path) -> None:
    free = f"{DISTILL}.recipe.frozen_embedding=false"
    warming = forecast(tmp_path, "distill-llama", free, f"{DISTILL}.recipe.embedding_steps=185")
    assert warming.flops == forecast(tmp_path, "distill-llama", free).flops


def test_only_the_rows_that_are_judged_cost_time(tmp_path: Path) -> None:
    whole = forecast(tmp_path, "distill-llama")
    part = forecast(tmp_path, "distill-llama", f"{DISTILL}.recipe.max_heldout_rows=100")
    assert 0 < part.seconds["judging"] < 0.1 * whole.seconds["judging"]
    assert part.seconds["compute"] == whole.seconds["compute"]


def test_a_row_that_is_longer_than_a_pass_decides_the_memory(tmp_path: Path) -> None:
    def activations(*changes: str) -> float:
        return forecast(tmp_path, "distill-llama", *(f"{DISTILL}.runtime.{change}" for change in changes)).memory[
            "activations"
        ]

    assert activations("micro_batch_tokens=512") == activations("micro_batch_tokens=4096")
    assert activations("micro_batch_tokens=512", "pack_tokens=8192") > 2 * activations("micro_batch_tokens=4096")


def test_two_threads_take_two_cores_and_half_the_time(tmp_path: Path) -> None:
    for label, block in (("distill-llama", DISTILL), ("logits-llama", DUMP), ("evaluate", "assessment.evaluate")):
        one, two = (
            forecast(tmp_path, label, f"{block}.runtime.threads={threads}", profile="micro") for threads in (1, 2)
        )
        assert (one.devices, two.devices) == (1, 2)
        assert two.seconds["compute"] == pytest.approx(one.seconds["compute"] / 2)
        assert two.memory == one.memory


@pytest.mark.parametrize(
    ("method", "device", "at_once"),
    [
        ("omp_anchored", "cpu", PURSUED_ON_CPU),
        ("omp_anchored", "cuda", PURSUED_ON_GPU),
        ("omp", "cpu", BY_TOKENSURGEON),
    ],
)
def test_a_surgery_holds_the_batch_of_its_method_and_device(
    tmp_path: Path, method: str, device: str, at_once: int
) -> None:
    block = "branches.llama.surgeon"
    sets = (f"{block}.recipe.method={method}", f"{block}.runtime.device={device}")
    found = forecast(tmp_path, "surgeon-llama", *sets)
    stated = forecast(tmp_path, "surgeon-llama", *sets, f"{block}.runtime.batch_size={at_once}")
    assert found.memory["batch"] > 0
    assert found.memory == stated.memory


def test_a_data_sheets_bandwidth_is_not_reached(tmp_path: Path) -> None:
    for label in ("distill-llama", "logits-llama"):
        whole, half = (forecast(tmp_path, label, assumed=(f"link_utilisation={part}",)) for part in (1.0, 0.5))
        assert half.seconds["traffic"] == pytest.approx(2 * whole.seconds["traffic"])
    whole, half = (forecast(tmp_path, "evaluate", assumed=(f"memory_utilisation={part}",)) for part in (1.0, 0.5))
    assert half.seconds["compute"] > 1.2 * whole.seconds["compute"]


def test_a_cloze_item_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    def tokens(items: int) -> float:
        tasks = f"assessment.evaluate.recipe.tasks=[{{type: cloze, items: {items}, choices: 10, context_chars: 320}}]"
        forecast_of = forecast(tmp_path, "evaluate", tasks)
        assert " writes 0 answers" in forecast_of.how[0]
        return forecast_of.tokens

    # 80 tokens of context once for the choices of one token, and again for each of the 8 % that are longer.
    models = sum(role.startswith("model.") for role in steps_of("medius")["evaluate"].inputs)
    assert tokens(400) - tokens(300) == pytest.approx(models * 100 * 80 * (1 + 0.08 * 10))


def test_a_mixture_weighs_the_stores(tmp_path: Path) -> None:
    short, long = Documents(1000, 100e3, 50e3), Documents(1000, 900e3, 900e3)
    text = TrainingText(stores=((0.75, short), (0.25, long)), heldout=Documents(), longest=900)
    learnt = text.learnt(400)
    assert (learnt.rows, learnt.tokens, learnt.targets) == (400, 300 * 100 + 100 * 900, 300 * 50 + 100 * 900)
    assert text.rows == 2000
    assert TrainingText(((1.0, short), (0.0, long)), Documents(), 900).rows == 1000
    # The stores' lengths differ by more than documents of one store do.
    assert text.deviation(1.0) == pytest.approx((0.75 * 0.25) ** 0.5 * 800)
    assert TrainingText(((1.0, short),), Documents(), 900).deviation(1.0) == 0


def test_the_recipes_mixture_is_the_forecasts(tmp_path: Path) -> None:
    corpus = (
        "{recipe: {sources: [{kind: exercises, count: 90, seed: 3}], max_tokens: 256, heldout_fraction: 0.1, "
        "template_date: '2024-07-26'}}"
    )
    dump = (
        "{recipe: {teacher: {dtype: float32}, support: {kind: top_k, num_kept: 32}}, gates: {min_captured_mass: null}}"
    )
    more = f"branches.qwen.more_logits={{sums: {{corpus: {corpus}, dump_logits: {dump}}}}}"
    tokens = {}
    for share in (1, 3):
        mixture = f"branches.qwen.distill.recipe.mixture={{qwen: 1, sums: {share}}}"
        step = steps_of("micro", more, mixture)["distill-qwen"]
        parts = [part for part, _ in training_text(step, sizes_in(tmp_path)).stores]
        assert sorted(parts) == pytest.approx(sorted((1 / (1 + share), share / (1 + share))))
        tokens[share] = forecast(tmp_path, "distill-qwen", more, mixture, profile="micro").tokens
    # Exercises are shorter than documentation.
    assert tokens[3] < tokens[1]


# Dumps


def test_the_head_is_the_leaders(tmp_path: Path) -> None:
    group, alone = (forecast(tmp_path, "logits-llama", f"{DUMP}.runtime.tensor_parallel={size}") for size in (8, 1))
    assert group.flops == alone.flops
    head = sizes_in(tmp_path).model(steps_of("medius")["model-llama-teacher"]).shape.head_weights
    # The heldout split, and rows that pass once more, are in the tokens of the head, so a little less than this.
    seconds = 2 * head * group.tokens / (989.4e12 * 0.35)
    assert group.seconds["compute"] - alone.seconds["compute"] == pytest.approx(seconds * 7 / 8, rel=0.01)


def test_a_row_that_is_longer_than_a_batch_is_one(tmp_path: Path) -> None:
    small, row = (
        forecast(tmp_path, "logits-llama", f"{DUMP}.runtime.tokens_per_batch={tokens}").memory for tokens in (512, 4096)
    )
    assert small == row


def test_a_served_teacher_costs_its_servers_time_and_its_answers_bytes(tmp_path: Path) -> None:
    loaded = forecast(tmp_path, "logits-llama")
    settings = (
        f"{DUMP}.recipe.teacher={{kind: served, dtype: bfloat16, quantisation: fp8}}",
        f"{DUMP}.runtime={{server: {{base_url: 'http://teacher:8000/v1'}}}}",
    )
    served = forecast(tmp_path, "logits-llama", *settings, assumed=("served_tokens_per_second=8000",))
    # What is stored is the same; 129 entries a token move as JSON, and no device is this stage's.
    assert (served.tokens, served.stored, served.objects) == (loaded.tokens, loaded.stored, loaded.objects)
    assert served.seconds["compute"] == pytest.approx(served.tokens / 8000, rel=0.01)
    assert served.moved - served.stored == pytest.approx(served.tokens * 129 * 70, rel=0.01)
    assert (served.hardware, served.usd({})) == (None, 0)
    assert served.warnings == ("the server's devices and their price are not in the sums",)


def test_a_mass_alone_counts_as_many_entries_as_there_can_be(tmp_path: Path) -> None:
    support = "{kind: adaptive, min_probability: null, min_mass: 0.9, max_kept: 100}"
    found = forecast(tmp_path, "logits-llama", f"{DUMP}.recipe.support={support}")
    assert found.stored / found.tokens == pytest.approx(100 * 1.38 + 12.5, rel=0.02)
    assert any("100 entries a position, as many as max_kept where only min_mass decides" in line for line in found.how)
    assert not by_mass_alone({"kind": "adaptive", "min_probability": 0.001, "min_mass": 0.9})


# Evaluations


def test_the_longest_windows_are_read_together(tmp_path: Path) -> None:
    short = ("longest_prompt_tokens=100", "answer_tokens=1")
    found = forecast(tmp_path, "evaluate", assumed=short)
    # The largest model is Mistral-Small, of 32,768 rows.
    assert found.memory["head"] == (2 * 8 + 8) * 2048 * 32_768
    # Two documents have so many windows at one time.
    few = forecast(tmp_path, "evaluate", "assessment.evaluate.recipe.max_documents=2", assumed=short)
    assert few.memory["head"] == (2 * 2 + 8) * 2048 * 32_768


# Memory of nodes, and shapes


def test_what_a_fusion_needs_is_compared_with_a_nodes_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("cpu-core: {accelerator: false, peak_flops: {float32: 1e11}, node_memory_bytes: 8e9, source: x}\n")
    monkeypatch.setenv(OWN_TABLE, str(own))
    found = forecast(tmp_path, "fuse")
    assert found.hardware is None
    assert found.warnings == ("needs 15.6 GB of a node's own memory and a node of cpu-core has 7.36 GB to give",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"model_type": "mamba"},
            r"of model-base: the FLOPs of model_type 'mamba' are not known; .*; correct the file,",
        ),
        ({"model_type": "qwen2"}, r"of model-base: the config of a qwen2 model has no 'hidden_size'; .*plan without"),
        ([], r"config\.json holds no JSON object; put the config\.json of model-base there"),
        ("{", r"config\.json is no JSON \(.*\); put the config\.json of model-base there"),
    ],
)
def test_a_config_without_a_shape_is_named_with_its_model(tmp_path: Path, content: object, said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    source = f"models.base.recipe.source={{kind: directory, path: {folder}}}"
    with pytest.raises(BadInputError, match=said):
        forecast(tmp_path, "model-base", source, profile="micro")
