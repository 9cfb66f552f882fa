"""What `medius ablate` says and writes at its end, over a comparison that is in the store."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.ablate import report_ablation
from flows.ablation_plan import Kind, plan_ablation
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

    def __init__(self, path: Path, store: Path, kind: Kind) -> None:
        self.path, self.store, self.kind = path, str(store), kind

    def plan(self) -> tuple[Any, Any]:
        with constant_content():
            profile = load_profile(str(self.path), store=self.store)
        return plan_ablation(self.kind, profile), profile

    def finish(self, models: dict[str, Measured]) -> None:
        """Commits the comparison of the profile as it is now."""
        step = ablation_steps(*self.plan()).comparison
        reference = step.config.recipe.model_dump()["reference"]
        artifact = Artifact(open_store(self.store), step.directory)
        data, path = json.dumps(build_results(models, reference)).encode(), "data/main/results.json"
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


GRID = [
    {"merge_method": "karcher", "base_model": None},
    {"merge_method": "multislerp", "base_model": "base", "weights": [[0.5, 0.5]]},
]
NAMES: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reversion": (
        ("original", "trained"),
        ("original_rows", "shared_trained", "delta_transplant", "back_transplant"),
    ),
    "fusion": (("base", "branch-llama", "branch-qwen"), ("profile", "karcher", "multislerp-0.5-0.5")),
}
"""By kind: what is measured beside the candidates, and they."""
KINDS = pytest.mark.parametrize("kind", list(NAMES))


@pytest.fixture
def kind() -> Kind:
    return "reversion"


@pytest.fixture
def ablated(tmp_path: Path, micro: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: Kind) -> _Ablated:
    monkeypatch.chdir(tmp_path)
    changes = {"assessment.evaluate.recipe.max_documents": 4, "ablations": {"fusion": GRID}}
    return _Ablated(micro(changes), tmp_path / "store", kind)


def models(kind: Kind = "reversion", **candidates: Measured) -> dict[str, Measured]:
    others, names = NAMES[kind]
    return {
        **{name: measured(2.0 + at / 10, 200) for at, name in enumerate(others)},
        **{name: candidates.get(name, measured(2.5, 200)) for name in names},
    }


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


@pytest.mark.parametrize("kind", ["fusion"])
@pytest.mark.parametrize(
    ("taken", "fields"),
    [
        ("karcher", {"merge_method": "karcher", "base_model": None, "models": {"llama": {}, "qwen": {}}}),
        (
            "multislerp-0.5-0.5",
            {
                "merge_method": "multislerp",
                # The default, which this method wants written.
                "base_model": "base",
                "models": {name: {"parameters": {"weight": 0.5}} for name in ("llama", "qwen")},
            },
        ),
    ],
)
def test_the_fusion_that_is_chosen_is_written_so_that_it_is_read_again(
    ablated: _Ablated, taken: str, fields: dict[str, Any]
) -> None:
    ablated.finish(models("fusion", **{taken: measured(1.9, 200)}))
    before = yaml.safe_load(ablated.path.read_text())
    said = ablated.report()
    assert f"Chosen: {taken}." in said
    after = yaml.safe_load(ablated.path.read_text())
    kept = {name: before["fusion"]["fuse"]["recipe"][name] for name in ("chat_from", "dtype", "out_dtype")}
    assert after["fusion"]["fuse"]["recipe"] == {**kept, **fields}
    assert after["publish"]["recipe"].pop("merge_method").startswith(fields["merge_method"])
    for document in (before, after):
        document["publish"]["recipe"].pop("merge_method", None)
        del document["fusion"]["fuse"]["recipe"]
    assert after == before
    # What was measured as the candidate is now the profile's own, and is not tried a second time.
    plan, profile = ablated.plan()
    assert taken not in plan.candidates
    assert plan.candidates["profile"].recipe == profile.fusion.fuse.recipe
    report = Path(said.splitlines()[-1]).read_text()
    assert report.startswith("# Fusion of micro")
    assert all(name in report for names in NAMES["fusion"] for name in names)


@pytest.mark.parametrize("kind", ["fusion"])
def test_the_fusion_that_the_profile_has_stays(ablated: _Ablated) -> None:
    ablated.finish(models("fusion", profile=measured(1.9, 200)))
    before = ablated.path.read_text()
    assert "has it already" in ablated.report()
    assert ablated.path.read_text() == before


@KINDS
def test_a_profile_that_changed_while_the_ablation_ran_takes_no_choice(ablated: _Ablated, kind: Kind) -> None:
    ablated.finish(models(kind))
    changed = ablated.path.read_text().replace("learning_rate: 0.002", "learning_rate: 0.003")
    ablated.path.write_text(changed)
    with pytest.raises(BadInputError, match=r"edited\.yaml was changed while this ran.*run the same command again"):
        ablated.report()
    assert ablated.path.read_text() == changed


@KINDS
def test_models_without_numbers_are_told_in_one_sentence(ablated: _Ablated, kind: Kind) -> None:
    ablated.finish(dict.fromkeys(models(kind), BROKEN))
    second = NAMES[kind][0][1]
    with pytest.raises(GateFailedError, match=rf"no model gives usable numbers.*{second}: it gives logits"):
        ablated.report()


def test_brackets_in_a_template_s_own_message_are_shown_as_they_are(ablated: _Ablated) -> None:
    fault = "the chat template does not render: unexpected [/x]"
    ablated.finish(models(shared_trained=measured(1.9, 200, template_fault=fault)))
    assert fault in " ".join(ablated.report().split())
