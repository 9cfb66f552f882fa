"""Reads every byte of an artifact and names what differs from its manifest."""

from __future__ import annotations

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import ObjectMissingError
from tasks.artifacts.fingerprint import file_sha256, sha256_hex
from tasks.artifacts.manifest import Manifest, ObjectRecord, digest_of


def find_damage(artifact: Artifact, manifest: Manifest) -> list[str]:
    """One sentence for each object that is missing, short or changed; empty if all is well."""
    problems = [problem for entry in manifest.objects if (problem := object_damage(artifact, entry))]
    return problems + manifest_damage(artifact, manifest)


def manifest_damage(artifact: Artifact, manifest: Manifest) -> list[str]:
    """A sentence where the manifest's digest is not that of the objects that it lists."""
    if digest_of(manifest.objects) == manifest.digest:
        return []
    return [f"{artifact.uri}/manifest.json does not have the digest of its own object list"]


def object_damage(artifact: Artifact, entry: ObjectRecord) -> str | None:
    """A sentence where the object is missing, short or changed. From S3 it is held in memory, from disk it is not."""
    where = f"{artifact.uri}/{entry.path} ({entry.name})"
    path = artifact.store.local_path(artifact.path(entry.path))
    try:
        if path is not None and path.is_file():
            size, digest = path.stat().st_size, file_sha256(path)
        else:
            data = artifact.store.get(artifact.path(entry.path))
            size, digest = len(data), sha256_hex(data)
    except ObjectMissingError:
        return f"{where} is missing"
    if size != entry.size:
        return f"{where} has {size} bytes, the manifest says {entry.size}"
    return None if digest == entry.sha256 else f"{where} has other bytes than were committed"
