"""A repository that holds anything else is never overwritten, and the hub's refusals are sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tasks.artifacts.errors import BadInputError, TransientStoreError
from tasks.publish.hub import push
from tests.publish.hub_server import Hub, Repository, serve

REPO = "somebody/model"
MARKER = "<!-- medius: model 0123 -->"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub()) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", served.token)
        yield served


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """publish(weights=…, private=…) pushes a folder and returns its files."""

    def run(weights: str = "{}", *, private: bool = True, marker: str = MARKER) -> dict[str, bytes]:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text(f"---\nlicense: mit\n---\n\n# Card\n\n{marker}\n")
        (folder / "config.json").write_text(weights)
        push(folder, REPO, private=private, marker=marker, title="A model")
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    return run


def held(hub: Hub) -> dict[str, bytes]:
    return {name: data for name, data in hub.repositories[REPO].files.items() if name != ".gitattributes"}


def test_a_new_repository_is_private_and_holds_the_folder(hub: Hub, publish: Callable[..., dict[str, bytes]]) -> None:
    assert publish() == held(hub)
    assert hub.repositories[REPO].private


def test_the_same_model_replaces_what_was_published_of_it(hub: Hub, publish: Callable[..., dict[str, bytes]]) -> None:
    publish()
    hub.repositories[REPO].files["gone.json"] = b"of an earlier version"
    assert publish(weights='{"a": 1}') == held(hub)


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": b"years of work"},
        {"README.md": b"# Mine\n", "model.safetensors": b"years of work"},
        {"README.md": MARKER.replace("0123", "4567").encode()},
    ],
    ids=["without a card", "with a card", "of another model"],
)
def test_a_repository_of_something_else_is_refused_and_stays(
    hub: Hub, publish: Callable[..., dict[str, bytes]], files: dict[str, bytes]
) -> None:
    hub.repositories[REPO] = Repository(private=True, files=dict(files))
    with pytest.raises(BadInputError, match=r"were not published of this model.*publish\.recipe\.repo_name"):
        publish()
    assert held(hub) == files


def test_an_upload_that_was_cut_off_goes_on(hub: Hub, publish: Callable[..., dict[str, bytes]]) -> None:
    publish()
    # The card is the first commit; a kill before the next leaves it alone.
    del hub.repositories[REPO].files["config.json"]
    assert publish() == held(hub)


def test_the_card_comes_before_all_else(hub: Hub, publish: Callable[..., dict[str, bytes]]) -> None:
    hub.repositories[REPO] = Repository(private=True)
    hub.answers = [("POST", "/commit/main", 0), ("POST", "/commit/main", 403)]
    with pytest.raises(BadInputError, match="answered 403"):
        publish()
    assert set(held(hub)) == {"README.md"}


def test_a_public_repository_is_not_filled_where_a_private_one_was_asked_for(
    hub: Hub, publish: Callable[..., dict[str, bytes]]
) -> None:
    hub.repositories[REPO] = Repository(private=False)
    with pytest.raises(BadInputError, match=r"is public and publish\.runtime\.private is true"):
        publish()
    assert held(hub) == {}
    assert publish(private=False) == held(hub)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, BadInputError, "answered 403 for somebody/model; set HF_TOKEN"),
        (400, BadInputError, "HF_TOKEN"),
        (503, TransientStoreError, "answered 503 for somebody/model; try again later"),
        (429, TransientStoreError, "try again later"),
        (412, TransientStoreError, "someone else changed somebody/model"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(
    hub: Hub, publish: Callable[..., dict[str, bytes]], status: int, kind: type[Exception], said: str
) -> None:
    hub.answers = [("POST", "/commit/main", status)] * 8
    with pytest.raises(kind, match=said):
        publish()


def test_a_wrong_token_names_its_variable(
    hub: Hub, publish: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(BadInputError, match="HF_TOKEN"):
        publish()


def test_no_network_is_a_sentence(
    hub: Hub, publish: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientStoreError, match="cannot be reached"):
        publish()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInputError, match="HF_HUB_OFFLINE is set"):
        publish()
