"""What a server is asked before any work: whether it serves this teacher, raw, unshifted, and enough of it.

One document of the corpus is asked for twice, and its beginnings are continued greedily: what the server then says of
the next token has to be what it says of the same token inside the whole document. An answer that is shifted, tempered
or passed through logit processors on one of the two ways shows there. What a server does to both alike cannot be seen
from outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import canonical_json, sha256_hex
from tasks.dump_logits.answers import PromptLogprobs, parse, positions, request_fields
from tasks.dump_logits.teacher_server import RefusedError, ServerClient
from tasks.logits.rows import Row
from tasks.logits.schema import AdaptiveSupport, TopKSupport

PROBE_TOKENS = 256
NUM_BEGINNINGS = 4
TOLERANCES = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.1}
"""Nats, of the likeliest token: another batch has another rounding. A shift by one makes several nats."""
MAX_REPEAT = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Nats, the mean over a document's following tokens, between two answers about it."""


@dataclass(frozen=True)
class ServerCheck:
    """Asks one server; `run` returns what was measured, for the store's records."""

    server: ServerClient
    support: TopKSupport | AdaptiveSupport
    dtype: str

    def run(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocab_size: int,
        row: Row,
        lengths: Iterable[tuple[str, int]],
    ) -> dict[str, float]:
        """`row` is asked for, `lengths` are ids and numbers of tokens of the longest rows.

        Returns:
            Differences in nats: server_repeat_mean, server_repeat_max, server_greedy_max; and server_tokenizer_known,
            1 where the server told the ids of a text, 0 where it cannot.

        Raises:
            BadInputError: one sentence with what does not fit and which setting of the server or the profile to change.
            TeacherServerError: the server does not answer.
        """
        self._context(self.server.served_model(), lengths)
        known = self._tokenizer(tokenizer, row)
        ids_T = row.input_ids[:PROBE_TOKENS]
        first = self._asked(ids_T)
        positions(first, self.support, vocab_size)
        again = self._asked(ids_T)
        with np.errstate(invalid="ignore"):
            off_P = np.nan_to_num(np.abs(first.gold_P - again.gold_P))
        if off_P.mean() > MAX_REPEAT[self.dtype]:
            raise BadInputError(
                f"the teacher server says of one document twice what differs by {off_P.mean():.3g} nats on average "
                f"({MAX_REPEAT[self.dtype]} allowed in {self.dtype}); see what changes its answers, such as replicas "
                f"of different models behind one address, or correct recipe.teacher.dtype"
            )
        return {
            "server_repeat_mean": float(off_P.mean()),
            "server_repeat_max": float(off_P.max()),
            "server_greedy_max": self._continued(ids_T, first),
            "server_tokenizer_known": float(known),
        }

    def _context(self, model: dict[str, Any], lengths: Iterable[tuple[str, int]]) -> None:
        limit = model.get("max_model_len")
        for row_id, length in lengths:
            # A prompt's log-probabilities come with at least one token that is generated.
            if limit is not None and length + 1 > int(limit):
                raise BadInputError(
                    f"row {row_id} has {length} tokens, and the teacher server takes {int(limit) - 1}; start it with "
                    f"--max-model-len {length + 1}, or build the corpus with a smaller max_tokens"
                )

    def _tokenizer(self, tokenizer: PreTrainedTokenizerFast, row: Row) -> bool:
        text = tokenizer.decode(row.input_ids[:PROBE_TOKENS].tolist())
        assert isinstance(text, str)
        theirs = self.server.token_ids(text)
        if theirs is None:
            return False
        ours = tokenizer.encode(text, add_special_tokens=False)
        digests = [sha256_hex(canonical_json(ids))[:16] for ids in (ours, theirs)]
        if digests[0] != digests[1]:
            raise BadInputError(
                f"the teacher server makes other ids of a text (hash {digests[1]}) than the tokenizer of the input "
                f"teacher ({digests[0]}); serve the model that belongs to that tokenizer"
            )
        return True

    def _asked(self, ids_T: np.ndarray) -> PromptLogprobs:
        protocol, width = self.server.settings.protocol, self.support.width
        try:
            answer = self.server.complete(ids_T.tolist(), **request_fields(protocol, width))
        except RefusedError as error:
            if "greater than max allowed" in str(error):
                raise BadInputError(
                    f"recipe.support keeps {width} entries, and the teacher server gives fewer ({error}); start vLLM "
                    f"with --max-logprobs {width}, or lower recipe.support"
                ) from error
            raise
        return parse(answer, protocol, ids_T)

    def _continued(self, ids_T: np.ndarray, whole: PromptLogprobs) -> float:
        """The largest difference, in nats, of the likeliest next token's log-probability after a beginning alone."""
        ends = np.unique(np.linspace(1, len(ids_T) - 1, NUM_BEGINNINGS).astype(int)).tolist()
        largest = 0.0
        for end in ends:
            token, logprob = self._greedy(ids_T[:end])
            # Position end − 1 predicts token `end`, of which nothing is known yet.
            ids_W, logprobs_W = whole.ids_PW[end - 1], whole.logprobs_PW[end - 1]
            said = logprobs_W[ids_W == token]
            off = max(abs(float(said[0]) - logprob), float(logprobs_W.max() - said[0])) if len(said) else np.inf
            largest = max(largest, off)
            if not off <= TOLERANCES[self.dtype]:
                raise BadInputError(
                    f"after {end} tokens of a document the teacher server continues with token {token} at "
                    f"{logprob:.3f}, and in the whole document gives it {float(said[0]) if len(said) else -np.inf:.3f} "
                    f"there and the likeliest {logprobs_W.max():.3f}: one of the two is shifted, tempered or goes "
                    f"through logit processors; start the server without processors and generation defaults (vLLM: "
                    f"--generation-config vllm)"
                )
        return largest

    def _greedy(self, ids_T: np.ndarray) -> tuple[int, float]:
        fields = {"temperature": 0, "logprobs": 1, "return_tokens_as_token_ids": True}
        answer = self.server.complete(ids_T.tolist(), **fields)
        try:
            said = answer["choices"][0]["logprobs"]
            return int(str(said["tokens"][0]).removeprefix("token_id:")), float(said["token_logprobs"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadInputError(
                "the teacher server gives a generated token without its id and log-probability, so what it says of "
                "prompts cannot be checked; use one that knows return_tokens_as_token_ids"
            ) from error
