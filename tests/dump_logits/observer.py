"""`python -m tests.dump_logits.observer LOCAL STORE DIRECTORY` copies a local store into another, then says for each
line of its input how far the dump in the directory is, as one line of JSON."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath

import s3fs

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import ObjectMissingError
from tasks.artifacts.store import open_store
from tests.seaweed import BUCKET


def main(local: str, target: str, directory: str) -> None:
    """Answers until its input ends."""
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
    store, root = open_store(target), Path(local)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        store.upload(file, file.relative_to(root).as_posix())
    artifact = Artifact(store, directory)
    for _ in sys.stdin:
        leases = {}
        for entry in store.list(artifact.path("leases")):
            # A lease that is given back meanwhile is nobody's.
            with suppress(ObjectMissingError):
                leases[PurePosixPath(entry.path).stem] = json.loads(store.get(entry.path))["host"]
        receipts = artifact.receipts()
        objects = {name: {each.name: each.sha256 for each in receipt.objects} for name, receipt in receipts.items()}
        # data/<shard>-<attempt>/…
        writers = {name: receipt.objects[0].path.split("/")[1].rpartition("-")[2] for name, receipt in receipts.items()}
        print(json.dumps({"leases": leases, "objects": objects, "writers": writers}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
