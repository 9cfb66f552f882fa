"""A dump whose replicas are on two hosts that share an S3 server and nothing else, one of them cut off for a while; and
one launch over two hosts with a tensor group on each."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.fingerprint import artifact_key
from tasks.artifacts.manifest import InputRecord
from tasks.artifacts.store import Store
from tasks.dump_logits.stage import DumpLogitsRuntime
from tasks.runtime.launch import launch
from tasks.worker.job import EXIT_TRANSIENT, Job
from tasks.worker.spec import WorkerSpec
from tests.conftest import _commit, _spec
from tests.dump_logits.conftest import make_row
from tests.dump_logits.test_dump import all_rows
from tests.hosts import Host, Hosts, two_hosts
from tests.runtime.conftest import wait_for
from tests.seaweed import BUCKET, SeaweedServer

ROWS, ROWS_PER_SHARD = 240, 4
STORE = f"s3://{BUCKET}/store"
LEASE_SECONDS = 5


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with two_hosts(tmp_path) as both:
        yield both


@pytest.fixture
def s3(hosts: Hosts, tmp_path: Path) -> Iterator[SeaweedServer]:
    """A server that both hosts reach."""
    server = SeaweedServer(tmp_path / "seaweed", hosts.switch)
    server.start()
    yield server
    server.kill()


class Observer:
    """A process beside the server that copies the inputs there and says how far a dump is."""

    def __init__(self, host: Host, server: SeaweedServer, local: str, directory: str, log: Path) -> None:
        self._process = subprocess.Popen(
            host.command(sys.executable, "-m", "tests.dump_logits.observer", local, STORE, directory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            env=server.client_environment,
            text=True,
        )

    def look(self) -> dict[str, Any]:
        """{"objects": {shard: {name: sha256}} of all receipts, "leases": {shard: host}}."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seen: dict[str, Any] = json.loads(self._process.stdout.readline())
        return seen

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def start(host: Host, spec: WorkerSpec, server: SeaweedServer) -> subprocess.Popen[bytes]:
    scratch = Path(spec.scratch)
    scratch.mkdir(parents=True)
    (scratch / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "tasks.dump_logits.worker", "--spec", str(scratch / "spec.json")]
    return host.popen(command, scratch / "worker.log", {**server.environment, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_host_that_is_cut_off_loses_its_shards_to_the_other_and_comes_back(
    hosts: Hosts,
    s3: SeaweedServer,
    tmp_path: Path,
    store: Store,
    teacher_of: Callable[..., Artifact],
    corpus_of: Callable[..., Artifact],
    recipe_of: Callable[..., dict[str, Any]],
) -> None:
    rows = {"train": [make_row(30, seed) for seed in range(ROWS)], "heldout": [make_row(30, 1000)]}
    records = {}
    for role, artifact in {"teacher": teacher_of(), "corpus": corpus_of(rows)}.items():
        manifest = artifact.manifest()
        assert manifest is not None
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    recipe = recipe_of(rows_per_shard=ROWS_PER_SHARD)
    key = artifact_key("dump_logits", 1, recipe, {role: record.key for role, record in records.items()})

    def spec_on(host: str) -> WorkerSpec:
        # Small batches: a shard takes long enough to be cut off in.
        runtime = {"device": "cpu", "tokens_per_batch": 1, "head_chunk_tokens": 8, "lease_ttl_seconds": LEASE_SECONDS}
        spec = _spec(tmp_path, store, "dump_logits", key, recipe=recipe, runtime=runtime, inputs=records)
        return spec.model_copy(update={"store": STORE, "input_cache": str(tmp_path / f"disk-of-{host}")})

    observer = Observer(hosts.switch, s3, store.uri, spec_on("a").directory, tmp_path / "observer.log")
    shards = ROWS // ROWS_PER_SHARD + 3  # one held out, the prior and the artifact's own
    specs = {name: spec_on(name) for name in ("a", "b")}
    processes = {}
    try:
        observer.look()
        processes = {name: start(hosts[name], spec, s3) for name, spec in specs.items()}
        logs = {name: Path(spec.scratch) / "worker.log" for name, spec in specs.items()}

        def both_at_work() -> bool:
            for name, process in processes.items():
                assert process.poll() is None, logs[name].read_text()[-3000:]
            seen = observer.look()
            has_made = set(seen["writers"].values()) >= {spec.attempt for spec in specs.values()}
            return has_made and {"a", "b"} <= set(seen["leases"].values())

        wait_for(both_at_work, 300, "both hosts have made a shard and have another")
        hosts.cut_off("b")
        seen = observer.look()
        held = {shard for shard, host in seen["leases"].items() if host == "b"} - set(seen["objects"])
        assert held
        assert processes["a"].wait(300) == 0, logs["a"].read_text()[-3000:]
        done = observer.look()["objects"]
        assert len(done) == shards
        # Of what the lost host held, each is the other's now; a shard's name carries who wrote it.
        writers = observer.look()["writers"]
        assert {writers[shard] for shard in held} == {specs["a"].attempt}
        assert specs["b"].attempt in writers.values(), "what the lost host had finished stays"

        hosts.reconnect("b")
        code = processes["b"].wait(300)
        said = logs["b"].read_text()
        assert code in (0, EXIT_TRANSIENT), said[-3000:]
        if code:
            assert "again" in said.splitlines()[-1], said[-3000:]
        assert observer.look()["objects"] == done, "what is finished stays as it is"

        # Whoever is started there once more finds nothing left to do.
        again = spec_on("b")
        processes["b"] = start(hosts["b"], again, s3)
        assert processes["b"].wait(300) == 0
        assert again.attempt not in observer.look()["writers"].values()
    finally:
        observer.end()
        for process in processes.values():
            process.kill()
            process.wait()


def received(host: Host) -> tuple[int, int]:
    """Bytes that this host received from itself and from others."""
    lines = [line.split() for line in host.run("cat", "/proc/self/net/dev").splitlines()[2:]]
    links = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return links.pop("lo"), sum(links.values())


@pytest.mark.slow
def test_one_launch_over_two_hosts_has_a_tensor_group_on_each(
    hosts: Hosts,
    tmp_path: Path,
    store: Store,
    teacher_of: Callable[..., Artifact],
    corpus_of: Callable[..., Artifact],
    recipe_of: Callable[..., dict[str, Any]],
    run_stage: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    rows = {"train": [make_row(30, seed) for seed in range(ROWS)], "heldout": [make_row(30, 1000)]}
    inputs = {"teacher": teacher_of(), "corpus": corpus_of(rows)}
    recipe = recipe_of(rows_per_shard=ROWS_PER_SHARD)
    there, here = (shlex.join(hosts[name].command()) for name in ("b", "a"))
    script = tmp_path / "on-both"
    script.write_text(f'#!/bin/sh\n{there} "$@" &\n{here} "$@" && wait $!\n')
    script.chmod(0o755)
    small = {"device": "cpu", "tokens_per_batch": 128, "head_chunk_tokens": 8}
    runtime = DumpLogitsRuntime.model_validate(
        small
        | {"launcher": "torchrun", "num_nodes": 2, "num_processes": 2, "tensor_parallel": 2}
        | {"rendezvous": "a", "node_command": [str(script)]}
    )
    records = {}
    for role, artifact in inputs.items():
        manifest = artifact.manifest()
        assert manifest is not None
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    key = artifact_key("dump_logits", 1, recipe, {role: record.key for role, record in records.items()})
    spec = _spec(tmp_path, store, "dump_logits", key, folder="two", recipe=recipe,
                 runtime=runtime.model_dump(mode="json"), inputs=records)  # fmt: skip
    file = Path(spec.scratch) / "spec.json"
    file.parent.mkdir(parents=True)
    file.write_text(spec.model_dump_json())
    process = launch("tasks.dump_logits.worker", file, runtime)
    try:
        assert process.wait(lambda: None) == 0, process.log_tail()
    finally:
        process.kill()
    two, one = _commit(Job(spec)), run_stage("dump_logits", recipe, inputs, small)
    for split in rows:
        for found, expected in zip(all_rows(two, split), all_rows(one, split), strict=True):
            assert found.row_id == expected.row_id
            assert np.abs(found.gold_logprob_P - expected.gold_logprob_P).max() < 1e-3
    # Shards of the second group carry its leader's rank.
    paths = {record.path.split("/")[1] for receipt in two.receipts().values() for record in receipt.objects}
    assert {"-r2-" in path for path in paths if path.startswith("train-")} == {True, False}
    for name in ("a", "b"):
        own, others = received(hosts[name])
        # A group's sums are 8 MB and more.
        assert others < own / 20, (name, own, others)
