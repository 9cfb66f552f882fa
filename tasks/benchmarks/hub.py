"""Where evaluation data come from: the hub, its cache on this machine, or a folder with copies of its data sets."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError

NLTK_DATA = "nltk_data"
"""The folder of a mirror with what NLTK would download, laid out as NLTK has it: tokenizers/punkt_tab/…"""


def confine_hub(scratch: Path, *, offline: bool, mirror: str | None = None) -> None:
    """Keeps what the Hugging Face libraries write in the scratch folder; they read these variables when imported.

    Weights and the login token stay where this machine has them: 28 GB are not fetched for each evaluation. What the
    library `datasets` prepares is no other process's, nor an earlier launch's: a task that shuffles as it prepares its
    documents draws nothing where it finds them, and the next one would come in another order.

    Args:
        offline: nothing at all is asked of the hub.
        mirror: if given, no data are asked of it.
    """
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    os.environ.setdefault("HF_HUB_CACHE", str(home / "hub"))
    os.environ.setdefault("HF_TOKEN_PATH", str(home / "token"))
    os.environ["HF_HOME"] = str(scratch / "huggingface")
    (scratch / "huggingface").mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-", dir=scratch / "huggingface")
    os.environ["HF_MODULES_CACHE"] = str(scratch / "huggingface" / "modules")
    os.environ["TQDM_DISABLE"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if offline or mirror is not None:
        os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_EVALUATE_OFFLINE"] = "1"


@contextmanager
def data_sets_from(mirror: str | None, revision: str | None = None) -> Iterator[None]:
    """In this block a data set OWNER/NAME is read from `mirror`/OWNER/NAME, where there is such a folder, and else
    from the hub at the commit `revision`, where one is given.

    The folder is laid out as the data set's repository: its data files, and README.md with the configurations.
    From then on NLTK reads `mirror`/nltk_data first.

    Raises:
        BadInputError: there is no folder `mirror`.
    """
    if mirror is None and revision is None:
        yield
        return
    folder = None if mirror is None else _folder(mirror)
    import datasets

    # The harness knows no folder of mirrors and few commits, and calls this function of the module.
    real = datasets.load_dataset

    def load_dataset(path: str, *args: Any, **kwargs: Any) -> Any:
        if folder is not None and (copy := folder / path).is_dir():
            return real(str(copy), *args, **kwargs)
        # Names without an owner are file formats.
        at = {"revision": revision} if revision is not None and "/" in path else {}
        return real(path, *args, **{**kwargs, **at})

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = real


def _folder(mirror: str) -> Path:
    folder = Path(mirror).expanduser().absolute()
    if not folder.is_dir():
        raise BadInputError(
            f"the folder of mirrored data sets {mirror} does not exist; correct `mirror` in the stage's runtime, or "
            f"leave it out to read from the hub"
        )
    _read_nltk_data_from(str(folder / NLTK_DATA))
    return folder


def _read_nltk_data_from(folder: str) -> None:
    # The variable is read when NLTK is imported, which takes seconds, and few tasks of the harness do it.
    given = os.environ.get("NLTK_DATA", "").split(os.pathsep)
    os.environ["NLTK_DATA"] = os.pathsep.join(dict.fromkeys([folder, *filter(None, given)]))
    if (nltk := sys.modules.get("nltk")) is not None and folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
