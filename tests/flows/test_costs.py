"""`medius plan --cost`: without a store, against a real dump, and with what it must refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from flows.cost_table import COLUMNS, print_cost
from flows.costs import CostOptions, RunCost, StepCost, cost_of
from flows.dag import build
from flows.forecasts import Forecasts
from flows.model_sizes import Sizes
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import ShardReceipt
from tasks.artifacts.store import open_store
from tasks.planning.hardware import OWN_TABLE
from tasks.planning.quantities import byte_size
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext, execute
from tests.flows.conftest import Medius

LLAMA, QWEN = "branches.llama.dump_logits", "branches.qwen.dump_logits"
TORCHRUN = ("launcher=torchrun", "rendezvous=a", "node_command=[srun]")
DEEPSPEED = ("launcher=deepspeed", "hostfile=hosts")


def steps_of(profile: str) -> dict[str, Step]:
    return {step.label: step for step in build(load_profile(profile))}


def over_nodes(block: str, count: int, launcher: tuple[str, ...]) -> list[str]:
    """Overrides that spread a stage over so many nodes."""
    return [f"{block}.runtime.{setting}" for setting in (f"num_nodes={count}", *launcher)]


def cost_in(store: Path, profile: str, overrides: Sequence[str] = (), **options: float | str) -> RunCost:
    loaded = load_profile(profile, overrides)
    return cost_of(build(loaded), open_store(str(store)), loaded.parallel_stages, CostOptions.read(**options))  # type: ignore[arg-type]


def by_label(cost: RunCost) -> dict[str, StepCost]:
    return {step.label: step for step in cost.steps}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the Llama teacher of micro, its corpus and its dump are finished."""
    folder = tmp_path_factory.mktemp("dumped")
    steps = steps_of("micro")
    for label in ("model-llama-teacher", "corpus-llama", "logits-llama"):
        execute(steps[label], RunContext(store=open_store(str(folder / "store")), scratch=folder / "scratch"))
    return folder / "store"


def test_a_forecast_is_what_the_stages_then_made(dumped: Path) -> None:
    store, given = open_store(str(dumped)), CostOptions.read().given
    forecasts = Forecasts(Sizes(store, given, None, set()), given)
    for label in ("model-llama-teacher", "corpus-llama", "logits-llama"):
        step = steps_of("micro")[label]
        manifest = Artifact(store, step.directory).manifest()
        assert manifest is not None
        forecast = forecasts.of(step)
        made = sum(entry.size for entry in manifest.objects)
        # The margin; of a model this small its tokenizer is 3 %.
        assert forecast.stored == pytest.approx(made, rel=0.1), label
    assert manifest is not None
    files = [path for path in (dumped / step.directory).rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert forecast.objects == len(files)
    assert forecast.tokens == manifest.metrics["tokens"]


def test_what_is_finished_costs_nothing_more_and_says_what_it_took(dumped: Path) -> None:
    cost = by_label(cost_in(dumped, "micro"))["logits-llama"]
    manifest = cost.state.manifest
    assert manifest is not None
    assert cost.left.duration == cost.left.moved == cost.left.flops == 0
    assert cost.whole.duration == manifest.provenance.seconds
    assert cost.whole.stored == sum(entry.size for entry in manifest.objects)
    more = [f"{LLAMA}.runtime.{setting}" for setting in ("pool=cpu", "replicas=4")]
    again = by_label(cost_in(dumped, "micro", more))["logits-llama"]
    assert again.whole.devices == cost.whole.devices, "it was made outside of a pool, by one launch"


def test_a_dump_that_has_begun_is_forecast_from_its_shards(dumped: Path, tmp_path: Path) -> None:
    shutil.copytree(dumped, tmp_path / "store")
    folder = tmp_path / "store" / steps_of("micro")["logits-llama"].directory
    whole = sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file())
    (folder / "manifest.json").unlink()
    (folder / "shards" / "main.json").unlink()
    lost = 0
    for name in ("train-00002", "train-00003"):
        receipt = folder / "shards" / f"{name}.json"
        lost += ShardReceipt.model_validate_json(receipt.read_bytes()).metrics["tokens"]
        receipt.unlink()
    cost = by_label(cost_in(tmp_path / "store", "micro"))["logits-llama"]
    assert cost.state.state == "started"
    assert "bytes a token of 3 shards" in cost.whole.measured
    assert "tokens/s" in cost.whole.measured
    assert list(cost.whole.seconds) == ["start", "weights", "measured speed"]
    assert cost.whole.stored == pytest.approx(whole, rel=0.1)
    left, all_of_it = cost.left.seconds, cost.whole.seconds
    assert left["measured speed"] / all_of_it["measured speed"] == pytest.approx(lost / cost.whole.tokens, rel=0.01)
    assert (left["start"], left["weights"]) == (all_of_it["start"], all_of_it["weights"])
    # The speed is one launch's, so its devices are one launch's, whatever the profile says meanwhile.
    more = [f"{LLAMA}.runtime.{setting}" for setting in ("pool=cpu", "replicas=4")]
    again = by_label(cost_in(tmp_path / "store", "micro", more))["logits-llama"]
    assert again.left.devices == cost.left.devices
    assert again.left.seconds == cost.left.seconds


def test_a_training_that_has_begun_is_forecast_from_its_log(tmp_path: Path) -> None:
    folder = tmp_path / steps_of("micro")["distill-llama"].directory
    fresh = by_label(cost_in(tmp_path, "micro"))["distill-llama"]
    done = 0.75 * fresh.whole.tokens
    for name, content in (
        ("checkpoints/step-12-0123abcd.json", {"step": 12, "state": {"training": {"tokens": done}}}),
        ("logs/0123abcd/performance.jsonl", {"step": 12, "tokens_per_second": 500.0}),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(content) + "\n")
    cost = by_label(cost_in(tmp_path, "micro"))["distill-llama"]
    assert cost.whole.measured == "500 tokens/s up to step 12"
    assert cost.whole.seconds["measured speed"] == pytest.approx(cost.whole.tokens / 500)
    assert cost.left.seconds["measured speed"] == pytest.approx(0.25 * cost.whole.tokens / 500)
    # The next launch starts, loads and exports as one that has all before it.
    for name in ("start", "weights", "export"):
        assert cost.left.seconds[name] == fresh.whole.seconds[name] > 0
    assert cost.left.seconds["judging"] == pytest.approx(fresh.whole.seconds["judging"] / 4)
    assert cost.left.stored == fresh.whole.stored


def test_a_store_without_credentials_counts_as_empty(medius: Medius, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    said = medius("plan", "medius", "--cost")
    assert said.code == 0, said.err
    told = [line for line in said.out.splitlines() if "The store cannot be read" in line]
    assert len(told) == 1
    assert "every stage counts as not begun: no credentials for s3://medius/production" in told[0]
    for label in steps_of("medius"):
        assert f"│ {label} " in said.out, label
    assert "(done)" not in said.out
    said = medius("plan", "medius")
    assert said.code == 1
    assert "no credentials for s3://medius/production" in said.err


def test_the_last_row_is_what_is_left(dumped: Path, tmp_path: Path) -> None:
    console = Console(width=150, record=True, file=(tmp_path / "said").open("w"))
    cost = cost_in(dumped, "micro")
    print_cost(cost, "micro", console)
    last = next(line for line in console.export_text().splitlines() if line.startswith("│ left to do"))
    found = dict(zip(COLUMNS, (cell.strip() for cell in last.split("│")[1:-1]), strict=True))
    assert found["stored"] == byte_size(sum(step.left.stored for step in cost.steps))
    assert found["stored"] != byte_size(cost.stored)
    assert found["objects"] == f"{sum(step.whole.objects for step in cost.steps if not step.state.manifest):,}"


@pytest.mark.parametrize("profile", ["micro", "tiny", "smollm2", "medius"])
def test_the_table_fits_150_columns(tmp_path: Path, profile: str) -> None:
    console = Console(width=150, record=True, file=(tmp_path / "said").open("w"))
    cost = cost_in(tmp_path / "empty", profile)
    print_cost(cost, profile, console)
    said = console.export_text()
    table = [line for line in said.splitlines() if line.startswith(("│", "┃"))]
    assert len(table) == len(cost.steps) + 2
    assert not [line for line in table if "…" in line or len(line) > 150]
    assert len({len(line) for line in table}) == 1


def test_the_production_profile_fits_the_hardware_that_it_names(tmp_path: Path) -> None:
    cost = cost_in(tmp_path, "medius")
    assert [(step.label, step.left.warnings) for step in cost.steps if step.left.warnings] == []
    assert {step.left.hardware.name for step in cost.steps if step.left.hardware is not None} == {"h100-sxm"}
    assert cost.most_devices == 8


def test_stages_of_whole_nodes_wait_for_each_other_on_one_and_not_on_two(tmp_path: Path) -> None:
    one, two = (cost_in(tmp_path, "medius", nodes=count) for count in (1, 2))
    assert two.most_devices == 16
    assert not {"logits-qwen", "distill-qwen"} & set(two.schedule.critical)
    assert {"logits-llama", "logits-qwen", "distill-llama", "distill-qwen"} <= set(one.schedule.critical)
    assert one.device_hours == two.device_hours
    for cost, count in ((one, 1), (two, 2)):
        hours, usd = cost.rented
        assert hours == pytest.approx(8 * count * cost.schedule.length / 3600)
        assert usd == pytest.approx(2.5 * hours)
        assert hours > cost.device_hours


def test_a_dump_over_two_nodes_takes_half_the_time_and_a_training_over_four_is_warned_of(tmp_path: Path) -> None:
    one = by_label(cost_in(tmp_path, "medius"))
    two = by_label(cost_in(tmp_path, "medius", over_nodes(LLAMA, 2, TORCHRUN), nodes=2))
    whole, spread = one["logits-llama"].whole, two["logits-llama"].whole
    for part in ("compute", "traffic"):
        # A group's sums stay within a node.
        assert spread.seconds[part] == pytest.approx(whole.seconds[part] / 2)
    assert (spread.nodes, spread.devices, spread.warnings) == (2, 16, ())
    assert spread.moved - whole.moved == pytest.approx(487e9, rel=0.01), (
        "the teacher's weights are fetched on each node"
    )

    distill = "branches.qwen.distill"
    four = by_label(cost_in(tmp_path, "medius", over_nodes(distill, 4, DEEPSPEED), nodes=4))["distill-qwen"].left
    assert four.seconds["compute"] == pytest.approx(one["distill-qwen"].left.seconds["compute"], rel=0.01)
    assert four.device_hours > 4 * one["distill-qwen"].left.device_hours
    assert four.warnings[0].startswith("a step has 6.6 passes of 20,480 tokens for 32 processes")
    less = [*over_nodes(distill, 4, DEEPSPEED), f"{distill}.runtime.micro_batch_tokens=4096"]
    [warning] = by_label(cost_in(tmp_path, "medius", less, nodes=4))["distill-qwen"].left.warnings
    assert warning.startswith(
        "traffic between devices takes 5.5 h beside 2.2 h of compute at 35 GB/s; take fewer nodes"
    )


def test_replicas_are_devices_of_nodes_of_their_own(tmp_path: Path) -> None:
    alone = by_label(cost_in(tmp_path, "medius"))["logits-llama"].whole
    cost = cost_in(tmp_path, "medius", [f"{LLAMA}.runtime.replicas=4"], nodes=4)
    four = by_label(cost)["logits-llama"].whole
    assert (four.devices, four.nodes, four.warnings) == (32, 4, ())
    assert four.seconds["compute"] == pytest.approx(alone.seconds["compute"] / 4)
    # Starting and loading are not shared.
    assert 1 < four.device_hours / alone.device_hours < 1.1
    assert four.moved - alone.moved == pytest.approx(3 * 487e9, rel=0.01)
    assert four.scratch == alone.scratch, "a launch's own"
    console = Console(width=170, record=True, file=(tmp_path / "said").open("w"))
    print_cost(cost_in(tmp_path, "medius", [f"{LLAMA}.runtime.replicas=4"]), "medius", console)
    assert "WARNING logits-llama: is for 4 nodes" in console.export_text()
    # Two halves of a node are one node.
    halves = [f"{QWEN}.runtime.{setting}" for setting in ("num_processes=4", "replicas=2")]
    shared = by_label(cost_in(tmp_path, "medius", halves))["logits-qwen"].whole
    assert (shared.devices, shared.nodes) == (8, 1)


def test_a_teacher_in_8_bits_is_warned_of_where_the_hardware_has_none(tmp_path: Path) -> None:
    warnings = {
        name: " ".join(by_label(cost_in(tmp_path, "medius", hardware=name))["logits-llama"].left.warnings)
        for name in ("a100-80gb", "h200")
    }
    assert "checkpoint is FP8, in which a100-80gb does not compute" in warnings["a100-80gb"]
    assert not warnings["h200"]


def test_twice_the_tokens_are_twice_the_dump(tmp_path: Path) -> None:
    half, whole = (by_label(cost_in(tmp_path, "medius", tokens=tokens)) for tokens in (5e8, 1e9))
    for label in ("logits-llama", "logits-qwen", "distill-llama", "corpus-qwen"):
        assert whole[label].whole.tokens == pytest.approx(2 * half[label].whole.tokens, rel=1e-3)
        assert whole[label].whole.flops == pytest.approx(2 * half[label].whole.flops, rel=0.02)
        # What is asked for is trained on; a hundredth of the corpus is held out beside it, and dumped.
        held_out = 0 if label.startswith("distill") else 0.01
        assert half[label].whole.tokens == pytest.approx(5e8 / (1 - held_out), rel=1e-3)
    assert whole["logits-llama"].whole.stored == pytest.approx(2 * half["logits-llama"].whole.stored, rel=1e-2)
    # No teacher reads the instructions.
    assert whole["sft"].whole.tokens == half["sft"].whole.tokens
    # By hand: 2 FLOP a weight and token; 47 entries of 1.38 bytes, and 12.5 more.
    assert half["logits-llama"].whole.flops == pytest.approx(2 * 405.85e9 * 5e8, rel=0.1)
    assert half["logits-llama"].whole.stored / half["logits-llama"].whole.tokens == pytest.approx(
        47 * 1.38 + 12.5, 0.01
    )


def test_money_is_devices_times_hours_times_price(tmp_path: Path) -> None:
    cost = cost_in(tmp_path, "medius")
    dump = by_label(cost)["logits-llama"].left
    assert dump.devices == 8
    assert dump.device_hours == pytest.approx(8 * dump.duration / 3600)
    assert dump.usd({}) == pytest.approx(2.5 * dump.device_hours)
    assert dump.usd({"h100-sxm": 4.0}) == pytest.approx(4 * dump.device_hours)
    assert cost.device_hours == pytest.approx(sum(step.left.device_hours for step in cost.steps))
    assert cost.schedule.length < sum(step.left.duration for step in cost.steps)


def test_what_does_not_fit_is_a_warning_with_its_largest_part(
    medius: Medius, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN_TABLE, "")
    own = tmp_path / "own.yaml"
    own.write_text("small-gpu: {peak_flops: {bfloat16: 1e14}, memory_bytes: 24e9, per_node: 4, source: a test}\n")
    said = medius("plan", "medius", "--cost", "--store", "none", "--hardware-file", str(own), "--hardware", "small-gpu")
    assert said.code == 0, said.err
    assert (
        "WARNING logits-llama: needs 69.1 GB on a device and small-gpu has 22.1 GB to give; most of it is weights"
        in (said.out)
    )
    assert "WARNING distill-qwen: starts 8 processes on a node, a node of small-gpu has 4 devices" in said.out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--cost", "--tokens", "0"), "give the training tokens of a corpus, such as 5e8"),
        (("--cost", "--tokens", "nan"), "--tokens is nan"),
        (("--cost", "--price", "h100-sxm"), "must be NAME=USD for an hour of one device"),
        (("--cost", "--price", "h300=2"), "with one of h100-sxm"),
        (("--cost", "--price", "h100-sxm=-1"), "must be NAME=USD"),
        (("--cost", "--hardware", "h300"), "hardware 'h300' is not in"),
        (("--cost", "--hardware-file", "nowhere.yaml"), "is no table of hardware"),
        (("--cost", "--assume", "paddding=0.1"), "must be name=value with one of the names tokens_per_text"),
        (("--cost", "--assume", "padding=2"), "--assume padding: "),
        (("--cost", "--assume", "tokens_per_text=inf"), "--assume tokens_per_text: "),
        (("--tokens", "5e8"), "are for --cost; add it"),
        (("--nodes", "2"), "are for --cost; add it"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_one_sentence(
    medius: Medius, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], what: str
) -> None:
    monkeypatch.setenv(OWN_TABLE, "")
    # Only who asks for an entry reads a table.
    named = ("--hardware", "cpu-core") if "nowhere.yaml" in arguments else ()
    said = medius("plan", "micro", "--store", "none", *arguments, *named)
    assert said.code == 2, said
    assert what in said.err
    assert len(said.err.splitlines()) == 1


def test_a_model_of_unknown_shape_is_named_with_the_place_for_its_config(tmp_path: Path) -> None:
    profile = tmp_path / "own.yaml"
    text = (Path(__file__).parents[2] / "configs/medius.yaml").read_text()
    profile.write_text(text.replace("mistralai/Mistral-Small-Instruct-2409", "mistralai/Mistral-9"))
    with pytest.raises(
        BadInputError, match=r"model-mistral-small is not known; put its config.json at .*mistralai--Mistral-9\.json"
    ):
        cost_in(tmp_path / "empty", str(profile))
