"""Files of models on the Hugging Face hub, at one commit, with every failure as a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.errors import BadInputError, TransientStoreError

REFERENCE_FILE = "reference.json"
"""Stands in a model's folder for weights that stay on the hub: {repo, revision}."""
_NOT_LOADED = ("*/*", "consolidated*")
"""Subfolders, and Mistral's own form of the weights, which stands beside transformers' and is as large again."""


def referenced(directory: Path, patterns: Sequence[str]) -> Path:
    """The folder that has the files of `patterns`: the directory itself, or the hub's that its reference names.

    Raises:
        BadInputError, TransientStoreError: as `hub_snapshot`.
    """
    reference = directory / REFERENCE_FILE
    if not reference.is_file():
        return directory
    target = json.loads(reference.read_text(encoding="utf-8"))
    return hub_snapshot(target["repo"], target["revision"], patterns, ignored=_NOT_LOADED)


def hub_snapshot(repo: str, revision: str, patterns: Sequence[str], *, ignored: Sequence[str] = ()) -> Path:
    """The folder of this machine's cache that has a commit's files of these names; what is missing there is fetched.

    Raises:
        BadInputError: the hub refuses, or it must not be asked (HF_HUB_OFFLINE) and the cache does not have them.
        TransientStoreError: the hub cannot be reached or cannot serve now; a later try may succeed.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # the base of what its HTTP client raises
        LocalEntryNotFoundError,
    )

    where = f"{repo} at {revision[:12]}"
    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored))
        )
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise BadInputError(
                f"{where} is not in this machine's cache and HF_HUB_OFFLINE is set; unset it, or take the model from a "
                f"folder"
            ) from error
        # What the hub answered when it was asked for the list of files.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(error.__cause__, where) from error
        raise _unreachable(where) from error
    except HfHubHTTPError as error:
        raise _refused(error, where) from error
    except HFValidationError as error:
        raise BadInputError(f"the hub has no repository of the name {repo!r}; correct it") from error
    except (HTTPError, ConnectionError) as error:
        # A proxy that refuses, or a line that breaks in the middle of a file.
        raise _unreachable(where) from error


def _refused(error: OSError, where: str) -> BadInputError | TransientStoreError:
    status = error.response.status_code  # type: ignore[attr-defined]
    if status == 429 or status >= 500:
        return TransientStoreError(f"the hub answered {status} for {where}; try again later")
    return BadInputError(
        f"the hub answered {status} for {where}; check the name and the commit, and HF_TOKEN for a gated model"
    )


def _unreachable(where: str) -> TransientStoreError:
    return TransientStoreError(f"the hub cannot be reached for {where}; try again when the network is up")
