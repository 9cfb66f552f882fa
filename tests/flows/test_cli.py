"""The command: exit codes, and what it says of a store that is empty, half finished or edited."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dag import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.artifact import encode_record
from tasks.artifacts.manifest import Manifest, Provenance, digest_of
from tasks.artifacts.store import open_store
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext, execute
from tests.flows.conftest import Medius


def micro_steps(*overrides: str) -> dict[str, Step]:
    return {step.label: step for step in build(load_profile("micro", overrides))}


def test_plan_of_an_empty_store_knows_every_key_and_writes_nothing(medius: Medius, tmp_path: Path) -> None:
    said = medius("plan", "micro", "--store", str(tmp_path / "store"))
    assert said.code == 0
    steps = micro_steps()
    for label, step in steps.items():
        assert re.search(rf"│ {label} +│ {step.key[:16]} │", said.out), label
    assert said.out.count(" missing ") >= len(steps)
    assert "ready to run" in said.out
    assert not list((tmp_path / "store").rglob("*"))


def test_status_of_an_empty_store(medius: Medius, tmp_path: Path) -> None:
    said = medius("status", "micro", "--store", str(tmp_path / "store"))
    assert said.code == 0
    assert 'start it with "medius run micro"' in said.out
    assert f"0 of {len(micro_steps())} stages finished" in said.out


def test_explain_of_an_empty_store(medius: Medius, tmp_path: Path) -> None:
    said = medius("explain", "micro", "sft", "--store", str(tmp_path / "store"))
    assert said.code == 0
    assert f"sft has key {micro_steps()['sft'].key[:16]}; no sft artifact is finished" in said.out


def test_verify_of_an_empty_store_finds_nothing_wrong(medius: Medius, tmp_path: Path) -> None:
    assert medius("verify", "micro", "--store", str(tmp_path / "store")).code == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("plan", "mikro"), "there is no profile 'mikro'"),
        (("plan", "micro", "--set", "nonsense"), "must look like"),
        (("plan", "micro", "--set", "fusion.fuse.recipe.dtyp=x"), "fusion.fuse.recipe.dtyp: there is no such key"),
        (("explain", "micro", "sfft"), "there is no stage 'sfft'; the stages are: model-merge-base"),
        (("run", "mikro"), "there is no profile 'mikro'"),
        (("run", "micro", "--store", "gs://bucket/x"), "unknown scheme"),
        (("plan", "micro", "--store", "s3:/typo"), "typo"),
        (("accept", "0123456789abcdef", "gate", "--reason", "x"), "has no artifact with key 0123456789abcdef"),
        (("plan",), "Missing argument"),
        (("plan", "micro", "--stor", "x"), "--stor"),
        (("paln", "micro"), "paln"),
        (("accept", "0123456789abcdef", "gate"), "--reason"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(medius: Medius, arguments: tuple[str, ...], what: str) -> None:
    said = medius(*arguments)
    assert said.code == 2, said
    assert what in said.err
    assert "Traceback" not in said.err
    assert not (Path.cwd() / ".medius").exists(), "nothing is started or written for it"


def test_the_installed_command_ends_with_the_code_that_was_decided(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("medius")
    result = subprocess.run([command, "run", "mikro"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("medius: there is no profile 'mikro'")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_what_looks_like_markup_is_printed_as_it_is(medius: Medius, tmp_path: Path) -> None:
    where = tmp_path / "[" / "INST]"
    step = micro_steps()["evolve"]
    provenance = Provenance(
        write_id="0", created="", seconds=1, attempts=1, flow_run=None, git_sha=None, git_dirty=None, hardware={},
        versions={}, runtime={},
    )  # fmt: skip
    manifest = Manifest(
        stage="evolve", version=step.stage.version, label="evolve", key="0" * 64, digest=digest_of(()),
        recipe={"prompt": "[INST] x [/INST]"}, inputs={}, objects=(), metrics={}, provenance=provenance,
    )  # fmt: skip
    open_store(str(where)).put("artifacts/evolve/evolve-0000000000000000/manifest.json", encode_record(manifest))
    said = medius("explain", "micro", "evolve", "--store", str(where))
    assert said.code == 0, said.err
    assert "recipe.prompt: [INST] x [/INST] → absent" in said.out
    for verb in ("plan", "status"):
        said = medius(verb, "micro", "--store", str(where))
        assert said.code == 0, said.err
        assert "[/INST]" in said.out


_PREFECT = """
import sys
from flows.cli import main
sys.argv = ["medius", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted(name for name in sys.modules if name.partition(".")[0] == "prefect"))
"""


@pytest.mark.parametrize(
    "arguments", [("plan", "micro"), ("status", "micro"), ("explain", "micro"), ("gc",)], ids=lambda words: words[0]
)
def test_what_only_looks_loads_no_prefect(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """It costs three seconds of CPU and writes into the user's home."""
    result = subprocess.run(
        [sys.executable, "-c", _PREFECT, *arguments, "--store", str(tmp_path / "store")],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(CONFIGS.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].strip() == "loaded:"
    assert not (tmp_path / ".prefect").exists()


@pytest.fixture
def half_finished(tmp_path: Path) -> Path:
    """A store in which two steps of micro are finished, as after a run that was ended early."""
    store = open_store(str(tmp_path / "store"))
    steps = micro_steps()
    for label in ("model-base", "evolve"):
        execute(steps[label], RunContext(store=store, scratch=tmp_path / "scratch"))
    return tmp_path / "store"


def test_an_edited_profile_gets_other_keys_and_explain_names_the_field(medius: Medius, half_finished: Path) -> None:
    store = ("--store", str(half_finished))
    edit = ("--set", "fine_tuning.evolve.recipe.source.count=21")
    before, after = micro_steps(), micro_steps(edit[1])

    said = medius("status", "micro", *store)
    assert f"2 of {len(before)} stages finished" in said.out
    said = medius("explain", "micro", "evolve", *store)
    assert f"evolve is finished: key {before['evolve'].key[:16]}" in said.out

    assert {label for label in before if before[label].key != after[label].key} == {
        "evolve", "clean", "corpus-sft", "sft", "choose", "evaluate", "publish"
    }  # fmt: skip
    said = medius("plan", "micro", *store, *edit)
    assert re.search(r"│ evolve +│ [0-9a-f]{16} │ +│ missing ", said.out)
    assert re.search(r"│ model-base +│ [0-9a-f]{16} │ +│ finished ", said.out)
    said = medius("explain", "micro", "evolve", *store, *edit)
    assert said.out.splitlines() == [
        f"evolve has key {after['evolve'].key[:16]}; the nearest finished one is {before['evolve'].key[:16]}:",
        "  recipe.source.count: 20 → 21",
    ]
    said = medius("explain", "micro", "model-merge-base", *store)
    assert "recipe.source.name: qwen-student → qwen-base" in said.out

    said = medius("verify", "micro", *store)
    assert said.code == 0
    assert said.out.count(" ok") == 2
    step = before["model-base"]
    weights = next((half_finished / step.directory).rglob("model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    said = medius("verify", "micro", *store)
    assert said.code == 1
    assert "model-base" in said.out
    assert "DAMAGED" in said.out
    assert f"{weights} (model.safetensors) has other bytes" in said.out
    assert "1 problem was found" in said.err
