"""How fast one process turns a server's answers into distributions: `python -m tests.dump_logits.answer_speed`.

An answer in vLLM's format about 4,096 tokens with 128 entries each and their log-probabilities in 17 digits.
"""

from __future__ import annotations

import json
import time

import numpy as np

from tasks.dump_logits.answers import parse, positions
from tasks.dump_logits.teacher_server import decoded
from tasks.logits.schema import AdaptiveSupport

TOKENS, ENTRIES, VOCAB, TIMES = 4096, 128, 128_256, 3


def answer(generator: np.random.Generator, tokens_T: np.ndarray) -> bytes:
    """The body of an answer with random distributions."""
    said: list[dict[str, dict[str, object]] | None] = [None]
    for token in tokens_T[1:].tolist():
        mass_K = np.sort(0.95 * generator.dirichlet(np.full(ENTRIES, 0.2)) + 1e-9)[::-1]
        ids_K = generator.choice(VOCAB, ENTRIES, replace=False).tolist()
        entries: dict[str, dict[str, object]] = {
            str(other): {"logprob": float(np.float32(np.log(mass))), "rank": place + 1, "decoded_token": " the"}
            for place, (other, mass) in enumerate(zip(ids_K, mass_K, strict=True))
        }
        entries.setdefault(str(token), {"logprob": -20.25, "rank": 999, "decoded_token": " a"})
        said.append(entries)
    return json.dumps({"choices": [{"prompt_logprobs": said}]}, separators=(",", ":")).encode()


def main() -> None:
    generator = np.random.default_rng(0)
    tokens_T = generator.integers(0, VOCAB, TOKENS).astype(np.int32)
    body = answer(generator, tokens_T)
    seconds = []
    for _ in range(TIMES):
        start = time.process_time()
        said = parse(decoded(body, "the answer"), "prompt_logprobs", tokens_T)
        positions(said, AdaptiveSupport(), VOCAB)
        seconds.append(time.process_time() - start)
    per_entry = len(body) / TOKENS / (ENTRIES + 1)
    print(f"{len(body):,} bytes, {per_entry:.0f} an entry; {TOKENS / sorted(seconds)[TIMES // 2]:,.0f} tokens/s of CPU")


if __name__ == "__main__":
    main()
