"""The shipped policies allow what the store asks of a server, and nothing else: compared with the requests it sends."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import CheckpointFolder
from tasks.artifacts.garbage import Garbage
from tasks.artifacts.lease import Lease
from tasks.artifacts.probe import require_conditional_writes
from tasks.artifacts.removal import remove
from tasks.artifacts.store import Store, open_store
from tests.seaweed import BUCKET, SeaweedServer

INFRA = Path(__file__).parents[2] / "infra"
NEEDS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
"""The action that AWS asks for, by S3's operation."""
MULTIPART_BYTES = 101 * 2**20
"""s3fs sends 100 MiB and more in parts."""

Request = tuple[str, str]


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    server = SeaweedServer(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Operation and key, or prefix, of all that any client asks for."""
    from aiobotocore.client import AioBaseClient

    asked: list[Request] = []
    real = AioBaseClient._make_api_call

    async def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        asked.append((operation, str(arguments.get("Key", arguments.get("Prefix", "")))))
        return await real(self, operation, arguments)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", call)
    return asked


@pytest.fixture
def s3(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> Store:
    import s3fs

    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    client = s3fs.S3FileSystem(skip_instance_cache=True)
    if not client.exists(BUCKET):
        client.mkdir(BUCKET)
    return open_store(f"s3://{BUCKET}/PREFIX")


def refused(policy: dict[str, Any], requests: list[Request]) -> list[Request]:
    """The requests that a policy does not allow, or of which it would not tell that the object is missing."""

    def allows(action: str, key: str, *, of_objects: bool) -> bool:
        for statement in policy["Statement"]:
            resources = statement["Resource"]
            named = [resources] if isinstance(resources, str) else resources
            name = f"arn:aws:s3:::BUCKET/{key}" if of_objects else "arn:aws:s3:::BUCKET"
            prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
            if (
                action in statement["Action"]
                and any(fnmatchcase(name, resource) for resource in named)
                and (of_objects or any(fnmatchcase(key, prefix) for prefix in prefixes))
            ):
                return True
        return False

    def passes(operation: str, key: str) -> bool:
        if not allows(NEEDS[operation], key, of_objects=operation not in {"ListObjectsV2", "ListMultipartUploads"}):
            return False
        # A missing object is 404 only to those who may list it, else 403; AWS takes its key for the prefix then
        # (github.com/ceph/ceph/pull/68577 does the same, github.com/kopia/kopia/pull/3072 tried it).
        return operation not in {"GetObject", "HeadObject"} or allows("s3:ListBucket", key, of_objects=False)

    return [request for request in requests if not passes(*request)]


def policy(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((INFRA / name).read_text())
    return loaded


def actions(name: str) -> set[str]:
    return {action for statement in policy(name)["Statement"] for action in statement["Action"]}


def work(store: Store, tmp_path: Path) -> None:
    """What runs and their workers do with a store."""
    require_conditional_writes(store)
    directory = f"artifacts/x/x-{uuid.uuid4().hex[:16]}"
    for path in (f"{directory}/lease.json", f"{directory}/leases/00001.json"):
        lease = Lease(store, path, 60)
        lease.acquire(0)
        with lease:
            pass
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    (small / "weights").write_bytes(b"1")
    folder = CheckpointFolder(Artifact(store, directory), "0a0a0a0a", {})
    for step in (1, 2):
        folder.save(step, small, {}, keep=1)
    assert folder.latest(tmp_path / "back") is not None
    folder.clear()
    with large.open("wb") as file:
        file.truncate(MULTIPART_BYTES)
    store.upload(large, f"{directory}/data/large")
    store.put(f"{directory}/data/small", b"1")
    assert store.exists(f"{directory}/data/small")
    store.download(f"{directory}/data/small", tmp_path / "small-back")


def collect(store: Store) -> None:
    """What the removal of garbage does besides."""
    folder = "artifacts/y/y-0123456789abcdef"
    paths = tuple(f"{folder}/{name}" for name in ("manifest.json", "data/main-1/x", "shards/main.json"))
    for path in paths:
        store.put(path, b"{}")
    assert remove(store, Garbage(folder, "", paths, 6, whole=True), 0)
    upload = store.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key="PREFIX/artifacts/y/left")  # type: ignore[attr-defined]
    left = [entry for entry in store.unfinished_uploads() if entry.upload == upload["UploadId"]]
    assert len(left) == 1
    store.abort_upload(left[0])


def test_workers_may_do_what_they_do_and_no_more(s3: Store, requests: list[Request], tmp_path: Path) -> None:
    work(s3, tmp_path)
    assert "UploadPart" in {operation for operation, _ in requests}
    assert refused(policy("bucket-policy.json"), requests) == []
    needed = {NEEDS[operation] for operation, _ in requests}
    # An upload in parts that fails is given up.
    assert needed | {"s3:AbortMultipartUpload"} == actions("bucket-policy.json")


def test_gc_needs_more_and_has_that(s3: Store, requests: list[Request]) -> None:
    collect(s3)
    assert refused(policy("bucket-policy-gc.json"), requests) == []
    assert {NEEDS[operation] for operation, _ in requests} == actions("bucket-policy-gc.json")
    not_workers = {operation for operation, _ in refused(policy("bucket-policy.json"), requests)}
    assert not_workers == {"DeleteObject", "ListMultipartUploads"}


@pytest.mark.parametrize("name", ["bucket-policy.json", "bucket-policy-gc.json"])
def test_that_an_object_is_missing_is_told(name: str) -> None:
    """Nothing is finished before a first run: were that 403, none could begin."""
    missing = ("GetObject", "PREFIX/artifacts/sft/sft-0123456789abcdef/manifest.json")
    assert refused(policy(name), [missing]) == []
    narrower = policy(name)
    [listing] = [statement for statement in narrower["Statement"] if statement["Sid"] == "ListThePrefix"]
    listing["Condition"]["StringLike"]["s3:prefix"] = ["PREFIX"]
    assert refused(narrower, [missing]) == [missing]


@pytest.mark.parametrize(
    "request_",
    [
        ("GetObject", "OTHER/x"), ("PutObject", "PREFIXES/x"), ("ListObjectsV2", ""),
        ("DeleteObject", "PREFIX/artifacts/sft/sft-0123456789abcdef/manifest.json"),
        ("DeleteObject", "PREFIX/runs/r.json"),
    ],
)  # fmt: skip
def test_what_no_worker_needs_is_forbidden(request_: Request) -> None:
    assert refused(policy("bucket-policy.json"), [request_]) == [request_]
