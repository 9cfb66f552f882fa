"""A real OpenAI-compatible server around a tiny model: chat, completions of token ids, and log-probabilities of prompts
by echo. It misbehaves on demand."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer
from tests.evaluate.conftest import TEMPLATE

NAME = "small-model"
Body = dict[str, Any]


class SmallServer:
    """Serves a model folder under NAME, one request at a time."""

    def __init__(self, folder: Path, *, echoes: bool = True) -> None:
        self.model = load_causal_lm(folder, dtype=torch.float32, device="cpu")
        self.tokenizer = load_tokenizer(folder)
        self.echoes = echoes
        """Off: as `transformers serve` does, it takes no notice of `echo` and `logprobs`."""
        self.bodies: list[Body] = []
        self.keys: set[str] = set()
        self.faults: deque[tuple[int, str]] = deque()
        """(status, body), sent before anything else."""
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server._lock:
                    server.bodies.append(body)
                    server.keys.add(self.headers.get("authorization", ""))
                    status, text = server.faults.popleft() if server.faults else server.answer(self.path, body)
                data = text.encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: Body) -> tuple[int, str]:
        if body["model"] != NAME:
            return 404, json.dumps({"error": {"message": f"no model {body['model']}"}})
        if path == "/v1/chat/completions":
            choices = [self._chat(body)]
        elif path == "/v1/completions":
            choices = [self._complete(body, ids, index) for index, ids in enumerate(body["prompt"])]
        else:
            return 404, "{}"
        return 200, json.dumps({"model": NAME, "choices": choices})

    def _chat(self, body: Body) -> Body:
        prompt = self.tokenizer.apply_chat_template(
            body["messages"],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=TEMPLATE,
            **body.get("chat_template_kwargs", {}),
        )
        text, finish = self._generated(self.tokenizer.encode(str(prompt), add_special_tokens=False), body)
        return {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}

    def _complete(self, body: Body, ids: list[int], index: int) -> Body:
        if not (body.get("echo") and self.echoes):
            text, finish = self._generated(ids, body)
            return {"index": index, "finish_reason": finish, "text": text, "logprobs": None}
        assert body["max_tokens"] == 1
        with torch.no_grad():
            logprobs_TV = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        best = logprobs_TV.argmax(-1).tolist()
        followed = [*ids[1:], best[-1]]
        return {
            "index": index,
            "finish_reason": "length",
            "text": "",
            "logprobs": {
                "token_logprobs": [None, *(float(logprobs_TV[at, token]) for at, token in enumerate(followed))],
                "top_logprobs": [
                    None,
                    *({str(token): float(logprobs_TV[at, token])} for at, token in enumerate(best)),
                ],
            },
        }

    def _generated(self, ids: list[int], body: Body) -> tuple[str, str]:
        begun, finish = len(ids), "length"
        for _ in range(body["max_tokens"]):
            with torch.no_grad():
                token = int(self.model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == self.tokenizer.eos_token_id:
                finish = "stop"
                break
            ids = [*ids, token]
        return str(self.tokenizer.decode(ids[begun:], skip_special_tokens=True)), finish
