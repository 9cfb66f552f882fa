"""Reads every byte of an artifact and names what differs from its manifest."""

from __future__ import annotations

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import ObjectMissingError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import Manifest, digest_of


def find_damage(artifact: Artifact, manifest: Manifest) -> list[str]:
    """One sentence for each object that is missing, short or changed; empty if all is well."""
    problems = []
    for entry in manifest.objects:
        where = f"{artifact.uri}/{entry.path}"
        try:
            data = artifact.store.get(artifact.path(entry.path))
        except ObjectMissingError:
            problems.append(f"{where} ({entry.name}) is missing")
            continue
        if len(data) != entry.size:
            problems.append(f"{where} ({entry.name}) has {len(data)} bytes, the manifest says {entry.size}")
        elif sha256_hex(data) != entry.sha256:
            problems.append(f"{where} ({entry.name}) has other bytes than were committed")
    if digest_of(manifest.objects) != manifest.digest:
        problems.append(f"{artifact.uri}/manifest.json does not have the digest of its own object list")
    return problems
