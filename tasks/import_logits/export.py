"""`python -m tasks.import_logits.export URI DIRECTORY` writes a logit store as plain parquet, one file a shard.

URI is that of the store's artifact, such as s3://bucket/prefix/artifacts/dump_logits/logits-llama-0123456789abcdef or
the same folder on local disk. The columns are described in tasks/import_logits/plain.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store, open_store
from tasks.import_logits.plain import Head, file_schema, table_of
from tasks.logits.reader import LogitReader, LogitRow

GROUP_BYTES = 32 * 2**20
"""Decoded rows that become one group of a file. Some three times this is in memory."""


def export(store: Store, directory: str, manifest: Manifest, target: Path) -> list[Path]:
    """Writes `<shard>.parquet` for each shard into `target`, and returns these files.

    A file that is there has all its rows: each is written under another name first. Such a file is left as it is, so
    an export that was stopped goes on.

    Raises:
        BadInputError: the artifact is no logit store, or `target` holds files of another.
        CorruptArtifactError, ObjectMissingError: the store is damaged.
    """
    reader = LogitReader(store, directory, manifest, cache_bytes=GROUP_BYTES)
    schema = file_schema(Head.of_store(reader.schema))
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for entry in reader.schema.shards:
        file = target / f"{entry.name}.parquet"
        written.append(file)
        if file.exists():
            with pq.ParquetFile(file) as found:
                head, num_rows = Head.of_file(found.schema_arrow, str(file)), found.metadata.num_rows
            if head != Head.of_store(reader.schema) or num_rows != entry.num_rows:
                raise BadInputError(f"{file} is not of {reader.uri}; give an empty folder")
            continue
        draft = file.with_suffix(".tmp")
        rows, waiting, size = reader.rows(entry.split), list[LogitRow](), 0
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            for index in range(entry.num_rows):
                row = rows[entry.first_row + index]
                waiting.append(row)
                size += row.num_bytes
                if size >= GROUP_BYTES or index == entry.num_rows - 1:
                    writer.write_table(table_of(waiting, schema))
                    waiting, size = [], 0
        draft.replace(file)
    return written


def store_of(uri: str) -> tuple[Store, str, Manifest]:
    """Store, folder and manifest of an artifact.

    Raises:
        BadInputError: there is no finished artifact.
    """
    root, found, folder = uri.rstrip("/").rpartition("/artifacts/")
    if not found:
        raise BadInputError(f"{uri} is no artifact; give …/artifacts/<stage>/<label>-<key> as medius status shows it")
    store, directory = open_store(root), f"artifacts/{folder}"
    manifest = Artifact(store, directory).manifest()
    if manifest is None:
        raise BadInputError(f"{uri} is not finished or not there; medius status shows what is")
    return store, directory, manifest


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tasks.import_logits.export", description=__doc__)
    parser.add_argument("uri", help="of the store's artifact")
    parser.add_argument("directory", type=Path, help="where the files go")
    arguments = parser.parse_args()
    try:
        store, directory, manifest = store_of(arguments.uri)
        files = export(store, directory, manifest, arguments.directory)
    except MediusError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"wrote {len(files)} files to {arguments.directory}")


if __name__ == "__main__":
    main()
