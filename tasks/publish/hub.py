"""To the Hugging Face hub: into an empty repository, or over what was published of this very model before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts.errors import BadInputError, TransientStoreError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_CARD = "README.md"
_OF_THE_HUB = {".gitattributes"}
"""What the hub itself puts into a new repository."""


def push(directory: Path, repo: str, *, private: bool, marker: str, title: str) -> None:
    """Makes the files of `directory` those of the repository `repo`, which is created if there is none.

    Args:
        marker: a line of the card that no other model's card has. A repository with files is taken over only if its
            card has it.

    Raises:
        BadInputError: the repository has files of something else, is public though `private` is asked for, or the hub
            refuses; nothing was changed there.
        TransientStoreError: the hub cannot be reached or cannot serve now; a later try goes on from what is uploaded.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _failures_told(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        head = _head(api, repo, private=private, marker=marker)
        # The card goes first: a large upload is several commits, and one that was cut off is known again by its marker.
        card = CommitOperationAdd(_CARD, directory / _CARD)
        begun = api.create_commit(repo, [card], commit_message=f"Card of {title}", parent_commit=head)
        api.upload_folder(
            repo_id=repo,
            folder_path=directory,
            commit_message=f"Publish {title}",
            delete_patterns="*",
            # Whoever writes there meanwhile is not overwritten.
            parent_commit=begun.oid,
        )


def _head(api: HfApi, repo: str, *, private: bool, marker: str) -> str | None:
    """The commit at which the repository was found to be free for this model."""
    info = api.model_info(repo)
    if private and info.private is False:
        raise BadInputError(
            f"the repository {repo} is public and publish.runtime.private is true; make it private on the hub, or set "
            f"publish.runtime.private to false"
        )
    files = {file.rfilename for file in info.siblings or ()} - _OF_THE_HUB
    if not files:
        return info.sha
    card = ""
    if _CARD in files:
        with tempfile.TemporaryDirectory() as folder:
            path = api.hf_hub_download(repo, _CARD, revision=info.sha, local_dir=folder)
            card = Path(path).read_text(encoding="utf-8", errors="replace")
    if marker not in card.splitlines():
        raise BadInputError(
            f"the repository {repo} has {len(files)} files that were not published of this model, such as "
            f"{min(files)}; name another one in publish.recipe.repo_name, or empty it on the hub"
        )
    return info.sha


@contextmanager
def _failures_told(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise BadInputError(
            f"HF_HUB_OFFLINE is set, so nothing can be published to {repo}; unset it, or set publish.recipe.target to "
            f"store"
        ) from error
    except LocalTokenNotFoundError as error:
        raise BadInputError(f"there is no token for {repo}; set HF_TOKEN to one that may write there") from error
    except HfHubHTTPError as error:
        raise _answered(error.response.status_code, repo) from error
    except LocalEntryNotFoundError as error:
        # The card that is there could not be fetched.
        raise _unreachable(repo) from error
    except HFValidationError as error:
        raise BadInputError(
            f"the hub takes no repository of the name {repo!r}; correct publish.recipe.repo_name"
        ) from error
    except ValueError as error:
        if "Invalid metadata" not in str(error):
            raise
        raise BadInputError(f"the hub refuses the card for {repo}: {' '.join(str(error).split())}") from error
    except Exception as error:
        # A connection that breaks ends in a class of whatever HTTP client the hub's library uses.
        if type(error).__module__.partition(".")[0].startswith("http") or isinstance(error, ConnectionError):
            raise _unreachable(repo) from error
        raise


def _answered(status: int, repo: str) -> BadInputError | TransientStoreError:
    if status == 429 or status >= 500:
        return TransientStoreError(f"the hub answered {status} for {repo}; try again later")
    if status == 412:
        return TransientStoreError(f"someone else changed {repo} during the upload; try again when they are done")
    return BadInputError(
        f"the hub answered {status} for {repo}; set HF_TOKEN to a token that may write there, and check "
        f"publish.recipe.repo_name"
    )


def _unreachable(repo: str) -> TransientStoreError:
    return TransientStoreError(f"the hub cannot be reached for {repo}; try again when the network is up")
