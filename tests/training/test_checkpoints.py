"""Checkpoints of a real engine: uploads beside the training, torn ones, and resuming under another shape."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
import torch

from tasks.artifacts.errors import CorruptArtifactError, TransientStoreError
from tasks.artifacts.local_store import LocalStore
from tasks.artifacts.store import Store
from tasks.training import checkpoints as checkpoints_module
from tasks.training.checkpoints import TrainingCheckpoints
from tasks.training.engine import TrainingEngine
from tasks.training.pickles import refuse_foreign_pickles
from tasks.training.processes import join
from tasks.training.settings import TrainingRuntime
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec
from tests.training.engines import make_engine, take, weights_of
from tests.training.parts import make_model

_attempts = itertools.count()


def open_checkpoints(tmp_path: Path, store: Store, engine: TrainingEngine, keep: int = 2) -> TrainingCheckpoints:
    """As a new launch of the same training would."""
    attempt = f"{next(_attempts):08x}"
    spec = WorkerSpec(
        stage="sft",
        label="sft",
        key="0" * 64,
        attempt=attempt,
        store=store.uri,
        directory="artifacts/sft/here",
        scratch=str(tmp_path / attempt),
        input_cache=str(tmp_path / "inputs"),
        recipe={},
        runtime={},
        inputs={},
    )
    runtime = TrainingRuntime(keep_checkpoints=keep, device="cpu")
    return TrainingCheckpoints(Job(spec), engine, join(runtime, tmp_path), runtime)


def lists(store: Store) -> list[str]:
    names = [entry.path.rpartition("/")[2] for entry in store.list("artifacts/sft/here/checkpoints")]
    return sorted(name for name in names if name.startswith("step-") and name.endswith(".json"))


def test_the_training_goes_on_while_a_checkpoint_is_uploaded(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    may_upload = threading.Event()
    upload = LocalStore.upload

    def slow(self: LocalStore, source: Path, path: str) -> None:
        assert may_upload.wait(30)
        upload(self, source, path)

    monkeypatch.setattr(LocalStore, "upload", slow)
    take(engine, 0)
    checkpoints.save(1, {"note": [1.5]})
    take(engine, 1)
    assert (lists(store), checkpoints.last_step) == ([], None)
    may_upload.set()
    for step in (2, 3):
        checkpoints.save(step, {"note": [step]})
        assert checkpoints.last_step in (step - 1, step)
    checkpoints.wait()
    assert checkpoints.last_step == 3
    assert [name[:6] for name in lists(store)] == ["step-2", "step-3"]
    assert not list(tmp_path.glob("*/checkpoint-*"))
    again = open_checkpoints(tmp_path, store, make_engine(tmp_path, model=make_model(seed=1)))
    assert (again.resume(), again.last_step) == ({"note": [3]}, 3)
    assert not list(tmp_path.glob("*/resume/*"))
    again.clear()
    assert lists(store) == []
    assert open_checkpoints(tmp_path, store, engine).resume() is None


def test_an_upload_that_fails_is_told_by_the_next_save_and_torn_files_are_passed_over(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    take(engine, 0)
    checkpoints.save(1, {})
    checkpoints.wait()
    weights = weights_of(engine)
    upload, files = LocalStore.upload, []

    def fail(self: LocalStore, source: Path, path: str) -> None:
        files.append(source)
        if len(files) == 3:
            raise TransientStoreError("503")
        upload(self, source, path)

    monkeypatch.setattr(LocalStore, "upload", fail)
    take(engine, 1)
    checkpoints.save(2, {})
    with pytest.raises(TransientStoreError, match="503"):
        checkpoints.save(3, {})
    assert checkpoints.last_step == 1
    assert list((tmp_path / "store").glob("artifacts/sft/here/checkpoints/step-2-*/*"))
    second = make_engine(tmp_path, model=make_model(seed=1))
    again = open_checkpoints(tmp_path, store, second)
    assert again.resume() == {}
    assert again.last_step == 1
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(second).items())


def test_a_finished_training_goes_on_without_its_last_checkpoint(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    checkpoints.save(1, {})
    checkpoints.wait()

    def fail(self: LocalStore, source: Path, path: str) -> None:
        raise TransientStoreError("503")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "upload", fail)
        checkpoints.save(2, {})
        checkpoints.settle()
    assert [name[:6] for name in lists(store)] == ["step-1"]
    checkpoints.close()
    checkpoints.clear()
    assert lists(store) == []


@pytest.mark.parametrize(
    ("zero", "precision"),
    [
        ("0", "bfloat16"),
        ("1", "float32"),
        ("1", "bfloat16"),
        ("2", "bfloat16"),
        ("2-offload", "bfloat16"),
        ("3", "float32"),
        ("3-offload", "bfloat16"),
    ],
)
def test_resuming_under_the_same_shape_changes_no_bit(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, zero: str, precision: str
) -> None:
    """Saved in the embedding phase's last step, so that the groups have learnt unequally often.

    The second engine has other buckets, which is no other shape: nothing is converted.
    """
    monkeypatch.setattr(checkpoints_module, "convert", None)
    engine = make_engine(tmp_path, zero=zero, precision=precision)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    take(engine, 0, learning="embedding")
    checkpoints.save(1, {})
    drawn = torch.rand(3)
    expected = [take(engine, step, 4) for step in (1, 2)]
    checkpoints.wait()
    buckets = {"reduce_bucket_size": 64, "allgather_bucket_size": 64}
    second = make_engine(tmp_path, zero=zero, precision=precision, model=make_model(seed=1), zero_settings=buckets)
    assert open_checkpoints(tmp_path, store, second).resume() == {}
    assert torch.equal(torch.rand(3), drawn)
    assert [take(second, step, 4) for step in (1, 2)] == expected
    weights = weights_of(engine)
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(second).items())


@pytest.mark.parametrize(
    ("before", "after", "precision"),
    [
        ("0", "2-offload", "float32"),
        ("1", "0", "float32"),
        ("2-offload", "3-offload", "float32"),
        ("3", "1", "float32"),
        ("1", "2", "bfloat16"),
        ("2", "0", "bfloat16"),
    ],
)
def test_resuming_under_another_shape_goes_on_alike(
    tmp_path: Path, store: Store, before: str, after: str, precision: str
) -> None:
    """Weight decay, moments and step counts differ by group here: one of them lost shows in the next two steps."""
    engine = make_engine(tmp_path, zero=before, precision=precision)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    take(engine, 0, learning="embedding")
    take(engine, 1)
    checkpoints.save(2, {"log": [2]})
    weights = weights_of(engine)
    expected = [take(engine, step, 4) for step in (2, 3)]
    checkpoints.wait()
    second = make_engine(tmp_path, zero=after, precision=precision, model=make_model(seed=1))
    assert open_checkpoints(tmp_path, store, second).resume() == {"log": [2]}
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(second).items())
    assert {group["role"]: float(second.engine.basic_optimizer.state[m]["step"]) for group, m in second.masters()} == {
        "embedding": 2,
        "matrices": 1,
        "vectors": 1,
    }
    tolerance = 1e-6 if precision == "float32" else 5e-3
    for found, result in zip([take(second, step, 4) for step in (2, 3)], expected, strict=True):
        assert (found.loss, found.grad_norm) == pytest.approx((result.loss, result.grad_norm), rel=tolerance)
    if precision == "float32":
        weights = weights_of(engine)
        for name, weight in weights_of(second).items():
            assert (weight - weights[name]).norm() <= 2e-6 * weights[name].norm() + 1e-6, name


@pytest.mark.parametrize(("before", "after"), [("0", "0"), ("1", "1"), ("3", "3"), ("0", "3"), ("1", "2"), ("3", "1")])
def test_a_frozen_embedding_is_resumed_under_the_same_shape_and_another(
    tmp_path: Path, store: Store, before: str, after: str
) -> None:
    """Embedding and head, which no checkpoint's optimiser state holds, are those that the training began with."""
    engine = make_engine(tmp_path, zero=before, frozen_embedding=True)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    take(engine, 0, learning="layers")
    checkpoints.save(1, {})
    expected = take(engine, 1, 4, "layers")
    checkpoints.wait()
    second = make_engine(tmp_path, zero=after, frozen_embedding=True)
    assert open_checkpoints(tmp_path, store, second).resume() == {}
    found = take(second, 1, 4, "layers")
    assert (found.loss, found.grad_norm) == pytest.approx((expected.loss, expected.grad_norm), rel=1e-6)
    weights = weights_of(engine)
    for name, weight in weights_of(second).items():
        assert (weight - weights[name]).norm() <= 2e-6 * weights[name].norm() + 1e-6, name
    if before == after:
        assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(second).items())


def test_what_deepspeed_cannot_convert_is_named(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(tmp_path)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    save = engine.save

    def lose_a_part(directory: Path) -> None:
        save(directory)
        next(directory.rglob("*optim_states.pt")).unlink()

    monkeypatch.setattr(engine, "save", lose_a_part)
    checkpoints.save(1, {})
    checkpoints.wait()
    with pytest.raises(CorruptArtifactError, match=r"cannot convert .*delete the folder checkpoints/"):
        open_checkpoints(tmp_path, store, make_engine(tmp_path, zero="2")).resume()


class _Errand:
    """Pickled, it is a call of print."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("done",)


@pytest.mark.parametrize("after", ["1", "2"])
def test_a_planted_pickle_is_refused_unread(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: str
) -> None:
    """Loaded as it is, or converted."""
    engine = make_engine(tmp_path)
    checkpoints = open_checkpoints(tmp_path, store, engine)
    save = engine.save

    def plant(directory: Path) -> None:
        save(directory)
        torch.save({"module": _Errand()}, next(directory.rglob("mp_rank_00_model_states.pt")))

    monkeypatch.setattr(engine, "save", plant)
    checkpoints.save(1, {})
    checkpoints.wait()
    with pytest.raises(CorruptArtifactError, match=r"would call \S*print when it is loaded.*delete the folder"):
        open_checkpoints(tmp_path, store, make_engine(tmp_path, zero=after)).resume()
    assert "done" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", [None, 4])
def test_a_pickle_that_cannot_be_read_is_refused(tmp_path: Path, protocol: int | None) -> None:
    """One that is none, and one with instructions that torch does not look into."""
    path = tmp_path / "mp_rank_00"
    if protocol is None:
        path.write_bytes(b"no archive")
    else:
        torch.save(_Errand(), path, pickle_protocol=protocol)
    with pytest.raises(CorruptArtifactError, match="not what a training writes"):
        refuse_foreign_pickles(tmp_path)
