"""What `medius ablate` says and writes at its end, over a comparison that is in the store."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.ablate import report_ablation
from flows.ablation_plan import plan_ablation
from flows.ablation_steps import ablation_steps
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, GateFailedError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import open_store
from tasks.compare.measured import Measured
from tasks.compare.results import build_results
from tests.flows.test_ablation_choice import measured
from tests.golden.keys import constant_content

BROKEN = Measured(tokenizer="x", fault="it gives logits that are not finite")


class _Ablated:
    """A profile of which a comparison is finished."""

    def __init__(self, path: Path, store: Path) -> None:
        self.path, self.store = path, str(store)

    def plan(self) -> tuple[Any, Any]:
        with constant_content():
            profile = load_profile(str(self.path), store=self.store)
        return plan_ablation("reversion", profile), profile

    def finish(self, models: dict[str, Measured]) -> None:
        """Commits the comparison of the profile as it is now."""
        step = ablation_steps(*self.plan()).comparison
        artifact = Artifact(open_store(self.store), step.directory)
        data, path = json.dumps(build_results(models, "original")).encode(), "data/main/results.json"
        artifact.store.create(artifact.path(path), data)
        objects = (ObjectRecord(name="results.json", path=path, size=len(data), sha256=sha256_hex(data)),)
        nothing: dict[str, Any] = {"recipe": {}, "inputs": {}, "metrics": {}}
        unknown: dict[str, Any] = {"flow_run": None, "git_sha": None, "git_dirty": None}
        provenance = Provenance(
            write_id="one", created="", seconds=0, attempts=1, hardware={}, versions={}, runtime={}, **unknown
        )
        about: dict[str, Any] = {"stage": "compare", "version": 1, "label": step.label, "key": step.key}
        artifact.commit(Manifest(digest=digest_of(objects), objects=objects, provenance=provenance, **about, **nothing))

    def report(self, *, write: bool = True) -> str:
        said = io.StringIO()
        report_ablation(*self.plan(), self.path, Console(file=said, width=200), write=write)
        return said.getvalue()


@pytest.fixture
def ablated(tmp_path: Path, micro: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> _Ablated:
    monkeypatch.chdir(tmp_path)
    return _Ablated(micro({"assessment.evaluate.recipe.max_documents": 4}), tmp_path / "store")


def models(**candidates: Measured) -> dict[str, Measured]:
    names = ("original_rows", "shared_trained", "delta_transplant", "back_transplant")
    return {
        "original": measured(2.0, 200), "trained": measured(2.1, 200),
        **{name: candidates.get(name, measured(2.5, 200)) for name in names},
    }  # fmt: skip


def test_the_choice_is_written_and_the_report_is_named_last(ablated: _Ablated) -> None:
    ablated.finish(models(shared_trained=measured(1.9, 200)))
    before = ablated.path.read_text()
    shown = ablated.report(write=False)
    assert ablated.path.read_text() == before
    assert "was left as it is" in shown
    said = ablated.report()
    mapped = (
        "special_tokens: {<|begin_of_text|>: <|endoftext|>, <|end_of_text|>: <|endoftext|>, <|start_header_id|>: "
        '<|im_start|>, <|end_header_id|>: "\\n", <|eot_id|>: <|im_end|>, <|finetune_right_pad_id|>: <|endoftext|>}'
    )
    assert before.count("strategy: original_rows") == 1
    after = ablated.path.read_text()
    assert mapped in after
    assert "strategy: original_rows" not in after
    unmapped = "\n".join(line for line in after.splitlines() if mapped not in line) + "\n"
    assert unmapped == before.replace("strategy: original_rows", "strategy: shared_trained")
    assert Path(said.splitlines()[-1]).read_text().startswith("# Reversion of the branch llama of micro")
    assert "has it already" in ablated.report(), "the plan is made of the file as it is now"


def test_a_profile_that_changed_while_the_ablation_ran_takes_no_choice(ablated: _Ablated) -> None:
    ablated.finish(models())
    changed = ablated.path.read_text().replace("learning_rate: 0.002", "learning_rate: 0.003")
    ablated.path.write_text(changed)
    with pytest.raises(BadInputError, match=r"edited\.yaml was changed while this ran.*run the same command again"):
        ablated.report()
    assert ablated.path.read_text() == changed


def test_models_without_numbers_are_told_in_one_sentence(ablated: _Ablated) -> None:
    ablated.finish(dict.fromkeys(models(), BROKEN))
    with pytest.raises(GateFailedError, match=r"no model gives usable numbers.*trained: it gives logits"):
        ablated.report()


def test_brackets_in_a_template_s_own_message_are_shown_as_they_are(ablated: _Ablated) -> None:
    fault = "the chat template does not render: unexpected [/x]"
    ablated.finish(models(shared_trained=measured(1.9, 200, template_fault=fault)))
    assert fault in " ".join(ablated.report().split())
