"""What huggingface_hub's client asks a hub for when it publishes, over HTTP and in memory.

Requests and answers have the form of the hub's own API; the client is the real one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One repository at its newest commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: int = 1

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


@dataclass
class Hub:
    """The repositories by name. `answers` replaces the answer to a method and the end of a path by a status, once each;
    0 lets one pass.
    """

    token: str = "right"
    repositories: dict[str, Repository] = field(default_factory=dict)
    answers: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    def _fault(self, method: str, path: str) -> int | None:
        for fault in self.answers:
            if fault[0] == method and path.endswith(fault[1]):
                self.answers.remove(fault)
                return fault[2]
        return None

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of a request."""
        if status := self._fault(method, path):
            return status, {}, b"{}"
        if token != self.token:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        if path == "/api/validate-yaml":
            return _said({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name, _, rest = path.removeprefix("/api/models").partition("/resolve/")
        parts = name.strip("/").split("/")
        repository = self.repositories.get("/".join(parts[:2]))
        if repository is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if rest:
            return self._file(repository, unquote(rest.partition("/")[2]))
        match parts[2:]:
            case [] | ["revision", _]:
                listed = [{"rfilename": file} for file in sorted(repository.files)]
                about = {
                    "id": "/".join(parts[:2]),
                    "sha": repository.sha,
                    "private": repository.private,
                    "siblings": listed,
                }
                return _said(about)
            case ["tree", _]:
                return _said([{"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
                              for file, data in repository.files.items()])  # fmt: skip
            case ["preupload", _]:
                asked = [file["path"] for file in json.loads(body)["files"]]
                return _said({"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False,
                                         "oid": _oid(repository.files[file]) if file in repository.files else None}
                                        for file in asked]})  # fmt: skip
            case ["commit", _]:
                return self._commit("/".join(parts[:2]), [json.loads(line) for line in body.splitlines()])
        return 404, {}, b"{}"

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {}, json.dumps({"url": f"{self.url}/{name}"}).encode()
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return _said({"url": f"{self.url}/{name}"})

    def _file(self, repository: Repository, file: str) -> tuple[int, dict[str, str], bytes]:
        if file not in repository.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        data = repository.files[file]
        return 200, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": repository.sha}, data

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
        repository = self.repositories[name]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in {None, repository.sha}:
            return 412, {"X-Error-Message": "A commit has happened since."}, b"{}"
        for line in lines[1:]:
            if line["key"] == "file":
                repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del repository.files[line["value"]["path"]]
        repository.commits += 1
        return _said({"commitUrl": f"{self.url}/{name}/commit/{repository.sha}", "commitOid": repository.sha})


def _said(answer: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def _oid(data: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, headers, answer = hub.answer(
                "GET" if self.command == "HEAD" else self.command, urlsplit(self.path).path, token, body
            )
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_HEAD = do_POST = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
