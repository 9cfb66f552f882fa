"""One artifact by its URI or its key, where a command takes either."""

from __future__ import annotations

import logging
import os
import re

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, ObjectMissingError
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store, open_store

STORE_VARIABLE = "MEDIUS_STORE"
"""Names a store for all that a shell or a worker runs, in the place of the profiles' own."""
URL_VARIABLE = "MEDIUS_STORE_URL"
"""Names what a browser opens in the place of that store's URI, such as http://gateway/bucket/prefix."""
DEFAULT_STORE = os.environ.get(STORE_VARIABLE) or ".medius/store"
_KEY = re.compile(r"[0-9a-f]{16,64}")
_URI = re.compile(r"(?:(?P<store>.*?)/+)?(?P<directory>artifacts/[^/]+/[^/]+)(?:/manifest\.json)?/*")


def browser_address(store: Store, path: str) -> str | None:
    """Where a browser finds an object; None where only programs reach the store."""
    named, url = os.environ.get(STORE_VARIABLE), os.environ.get(URL_VARIABLE)
    return f"{url.rstrip('/')}/{path}" if named and url and store.uri == named.rstrip("/") else None


def is_artifact(target: str) -> bool:
    """Whether `target` is a key or the URI of an artifact, not the name or the path of a profile."""
    return _KEY.fullmatch(target) is not None or (
        _URI.fullmatch(target) is not None and not target.endswith((".yaml", ".yml"))
    )


def find_artifact(target: str, store: str | None = None) -> tuple[Artifact, Manifest]:
    """The finished artifact at a URI (<store>/artifacts/<stage>/<label>-<key16>), or with a key in `store`.

    Raises:
        BadInputError: it is neither, or nothing finished is there.
    """
    if _KEY.fullmatch(target):
        artifact = find_key(open_store(store or DEFAULT_STORE), target)
    elif matched := _URI.fullmatch(target):
        if matched["store"] is not None and store is not None:
            raise BadInputError(f"{target} says which store it is in; leave --store out")
        # An absolute path below the root of the file system has an empty store.
        root = store or "." if matched["store"] is None else matched["store"] or "/"
        artifact = Artifact(open_store(root), matched["directory"])
    else:
        raise BadInputError(
            f"{target} is no artifact; give STORE/artifacts/STAGE/LABEL-KEY, or the first 16 digits of its key with "
            f"--store"
        )
    manifest = artifact.manifest()
    if manifest is None:
        begun = next(iter(artifact.store.list(artifact.directory)), None) is not None
        raise BadInputError(
            f"{artifact.uri} is not finished: it has no manifest.json; run its profile again to go on"
            if begun
            else f'{artifact.uri} does not exist; "medius plan PROFILE" shows the keys of a profile\'s artifacts'
        )
    return artifact, manifest


def find_key(store: Store, key: str) -> Artifact:
    """The artifact whose key starts with the 16 digits that `key` starts with.

    Raises:
        BadInputError: there is none.
    """
    for entry in store.list("artifacts"):
        folder, _, name = entry.path.rpartition("/")
        if name == "manifest.json" and folder.endswith(f"-{key[:16]}") and len(key) >= 16:
            return Artifact(store, folder)
    raise BadInputError(f'{store.uri} has no artifact with key {key}; "medius plan PROFILE" shows the keys')


def model_of(artifact: Artifact, manifest: Manifest, roles: tuple[str, ...]) -> tuple[Artifact, Manifest]:
    """The model that a logit store was made with in the first of these roles, from the same object store.

    Raises:
        ObjectMissingError: it is not there, or another one by now.
    """
    role = next((role for role in roles if role in manifest.inputs), None)
    if role is None:
        raise ObjectMissingError(f"{artifact.uri}/manifest.json names no {' or '.join(roles)}")
    record = manifest.inputs[role]
    model = Artifact(artifact.store, record.directory)
    found = model.manifest()
    if found is None:
        raise ObjectMissingError(f"its {role} {model.uri} is not there")
    if found.digest != record.digest:
        raise ObjectMissingError(
            f"its {role} {model.uri} is {found.digest[:16]} by now, the logits are of {record.digest[:16]}"
        )
    return model, found


def hush_open_sessions() -> None:
    """Keeps aiohttp from printing, at the end of a process, the S3 sessions that zarr's thread leaves open."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
