"""A real HTTP server with a real model, which speaks as vLLM does: /v1/models, /tokenize and /v1/completions.

Prompts' log-probabilities, greedy tokens and limits are computed as vLLM computes them; faults are put in on demand.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

HANG_UP, NO_JSON = -1, -2
"""In the place of a status: closes the connection without a word; a 200 with a page of HTML."""
_Body = dict[str, Any]


class VllmServer:
    """`with VllmServer(model, tokenizer) as server:` then `server.base_url`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_logprobs: int = 20) -> None:
        self.model, self.tokenizer, self.max_logprobs = model, tokenizer, max_logprobs
        self.max_model_len = 1 + int(model.config.max_position_embeddings)
        self.faults: deque[int] = deque()
        """Statuses with which the next completions are answered."""
        self.prompts: list[list[int]] = []
        """That were answered."""
        self.change_prompt: Callable[[Tensor], Tensor] = lambda logits_TV: logits_TV
        """What is wrong with the logits of prompts, and not with those of generated tokens."""
        self.at: dict[int, Callable[[], None]] = {}
        """What happens when so many completions have been computed."""
        self.num_faults = 0
        self.tells_tokenizer = True
        self.tells_ids = True
        self.key: str | None = None
        self._lock = threading.Lock()
        self.most_at_once = self._now = 0
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: Any) -> None:
                """Says nothing."""

            def do_GET(self) -> None:
                card = {"id": "teacher", "object": "model", "max_model_len": served.max_model_len}
                self._send(200, {"object": "list", "data": [card]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if served.key is not None and self.headers.get("Authorization") != f"Bearer {served.key}":
                    self._send(401, {"error": {"message": f"no {self.headers.get('Authorization')}"}})
                elif self.path == "/tokenize" and served.tells_tokenizer:
                    ids = served.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
                    self._send(200, {"tokens": ids, "count": len(ids), "max_model_len": served.max_model_len})
                elif self.path == "/v1/completions":
                    self._complete(body)
                else:
                    self._send(404, {"detail": "Not Found"})

            def _complete(self, body: _Body) -> None:
                fault = served.take_fault()
                if fault == HANG_UP:
                    self.close_connection = True
                elif fault == NO_JSON:
                    self._send(200, "<html>busy</html>")
                elif fault is not None:
                    self._send(fault, {"error": {"message": "injected"}})
                else:
                    status, answer = served.complete(body)
                    self._send(status, answer)

            def _send(self, status: int, body: _Body | str) -> None:
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def take_fault(self) -> int | None:
        with self._lock:
            self.num_faults += bool(self.faults)
            return self.faults.popleft() if self.faults else None

    def complete(self, body: _Body) -> tuple[int, _Body]:
        """Status and answer."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self._answer(body)
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, body: _Body) -> tuple[int, _Body]:
        ids = body["prompt"]
        for name, kind in (("prompt_logprobs", "prompt"), ("logprobs", "sample")):
            if (wanted := body.get(name) or 0) > self.max_logprobs:
                message = f"Requested {kind} logprobs of {wanted}, which is greater than max allowed: "
                return 400, {"error": {"message": f"{message}{self.max_logprobs}", "type": "BadRequestError"}}
        if len(ids) + body["max_tokens"] > self.max_model_len:
            return 400, {"error": {"message": f"This model's maximum context length is {self.max_model_len} tokens."}}
        with torch.inference_mode():
            logits_TV = self.model(input_ids=torch.tensor([ids])).logits[0].float()
        with self._lock:
            self.prompts.append(ids)
            self.at.pop(len(self.prompts), lambda: None)()
        # Position t of the answer is about token t, and so comes of what stands before it.
        prompt_TV = self.change_prompt(logits_TV)[:-1].log_softmax(-1)
        choice: _Body = {"index": 0, "text": "", "finish_reason": "length"}
        next_V = logits_TV[-1].log_softmax(-1)
        token = int(next_V.argmax())
        own = {"tokens": [self._name(token)], "token_logprobs": [_sent(next_V[token])]}
        if "prompt_logprobs" in body:
            likeliest = [
                self._entries(row_V, gold, body["prompt_logprobs"])
                for row_V, gold in zip(prompt_TV, ids[1:], strict=True)
            ]
            choice["prompt_logprobs"] = [None, *likeliest]
        elif body.get("echo"):
            num = body["logprobs"]
            tops = [{self._name(i): _sent(row_V[i]) for i in row_V.topk(num).indices.tolist()} for row_V in prompt_TV]
            golds = [_sent(row_V[gold]) for row_V, gold in zip(prompt_TV, ids[1:], strict=True)]
            own = {
                "tokens": [*map(self._name, ids), *own["tokens"]],
                "token_logprobs": [None, *golds, *own["token_logprobs"]],
                "top_logprobs": [None, *tops, {}],
            }
        choice["logprobs"] = own
        return 200, {"object": "text_completion", "model": "teacher", "choices": [choice]}

    def _entries(self, logprobs_V: Tensor, gold: int, num: int) -> _Body:
        """vLLM's entry of one token: itself, with its rank over all, and the likeliest."""
        top = logprobs_V.topk(num).indices.tolist()
        ranks = {gold: int((logprobs_V >= logprobs_V[gold]).sum())} | {token: at + 1 for at, token in enumerate(top)}
        return {
            str(token): {
                "logprob": _sent(logprobs_V[token]),
                "rank": rank,
                "decoded_token": self.tokenizer.decode(token),
            }
            for token, rank in ranks.items()
        }

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self.tells_ids else str(self.tokenizer.decode(token))


def _sent(logprob: Tensor) -> float:
    return max(float(logprob), -9999.0)
