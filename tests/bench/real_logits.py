"""One pass of a real teacher over real text, kept on disk: what the measurements of the store encode and compare with.

The text is Python's own documentation. Documents are dealt to three splits in their fixed order: "prior", on which
frequencies may be counted; "tune", on which settings may be chosen; "test", on which everything is measured.

`python -m tests.bench.real_logits 49k` makes the files of one vocabulary again.

Letters: P positions of a split, W = 160 entries, S = 50 draws, N sampled positions for gradients, D hidden size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.exercises.library_text import library_documents
from tasks.logits.rows import Row, make_row
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer
from tests.bench.paths import BENCH, ROOT
from tests.bench.teachers import VOCABULARIES, teacher_directory

SPLITS = {"prior": 24_000, "tune": 4_000, "test": 24_000}
"""Tokens of each, reached by whole documents."""
MIN_CHARACTERS = 2000
"""A shorter document measures the fixed cost of a row, not the distributions."""
MAX_TOKENS = 2048
NUM_ENTRIES = 160
NUM_DRAWS = 50
DRAW_SEED = 0
ANGLE_STRIDE = 12
"""Of the test positions, every 12th, so that the gradient's batch covers all documents."""
MAX_ANGLE_POSITIONS = 2048
SKIPPED_LAYERS = 6
"""The student is the teacher without its last layers: near enough to learn from it, far enough to differ."""
CHUNK = 128
TEXT = f"Python documentation, documents of {MIN_CHARACTERS} characters or more cut at {MAX_TOKENS} tokens"


@dataclass(frozen=True)
class RealLogits:
    """Per position: the 160 likeliest ids with log-probabilities (descending), the log of the mass outside them, the
    gold log-probability, 50 draws from the whole distribution with log-probabilities, all under the fp32 normaliser.

    tokens and token_offsets hold the documents; a document of T tokens has T − 1 positions, one after the other.
    """

    tokens: npt.NDArray[np.int32]
    token_offsets: npt.NDArray[np.int64]
    topk_ids_PW: npt.NDArray[np.int32]
    topk_logprobs_PW: npt.NDArray[np.float32]
    tail_logprob_P: npt.NDArray[np.float32]
    gold_logprob_P: npt.NDArray[np.float32]
    draw_ids_PS: npt.NDArray[np.int32]
    draw_logprobs_PS: npt.NDArray[np.float32]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_positions(self) -> int:
        return len(self.tail_logprob_P)

    def rows(self) -> list[Row]:
        """The documents as rows of a corpus: every token but a row's first is a target."""
        rows = []
        for start, stop in zip(self.token_offsets[:-1], self.token_offsets[1:], strict=True):
            mask = np.ones(stop - start, np.uint8)
            mask[0] = 0
            rows.append(make_row(self.tokens[start:stop], mask, "", "text", "library", "0" * 64))
        return rows


@dataclass(frozen=True)
class AnglePositions:
    """N of the test positions, with the head's inputs in teacher and student. The head (V, D) is the teacher's."""

    positions_N: npt.NDArray[np.int64]
    gold_N: npt.NDArray[np.int64]
    teacher_hidden_ND: npt.NDArray[np.float32]
    student_hidden_ND: npt.NDArray[np.float32]


@lru_cache(maxsize=2)
def real_logits(vocabulary: str, split: str) -> RealLogits:
    """A split's distributions in one of the vocabularies; the first call runs the teacher for about 5 minutes."""
    with np.load(_file(vocabulary, split)) as stored:
        return RealLogits(**{field.name: stored[field.name] for field in fields(RealLogits)})


def angle_positions(vocabulary: str) -> AnglePositions:
    """What the gradients are taken at."""
    with np.load(_file(vocabulary, "angles")) as stored:
        return AnglePositions(**{field.name: stored[field.name] for field in fields(AnglePositions)})


def head_weight(vocabulary: str) -> Tensor:
    """The head's (V, D) weight in float32."""
    model = load_causal_lm(teacher_directory(vocabulary), dtype=torch.float32)
    weight: Tensor = model.get_output_embeddings().weight.detach().clone()
    return weight


def _file(vocabulary: str, name: str) -> Path:
    folder = BENCH / f"logits-{vocabulary}"
    # Written last: without it an earlier run was stopped on the way.
    if not (folder / "angles.npz").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # In a process of its own: 2 to 4 GB go back to the machine before anything is timed.
        command = [sys.executable, "-m", "tests.bench.real_logits", vocabulary]
        subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=True)
    return folder / f"{name}.npz"


def _documents(vocabulary: str) -> Iterator[npt.NDArray[np.int64]]:
    tokenizer = load_tokenizer(teacher_directory(vocabulary)).backend_tokenizer
    for text in library_documents():
        if len(text) >= MIN_CHARACTERS:
            yield np.array(tokenizer.encode(text, add_special_tokens=False).ids[:MAX_TOKENS], np.int64)


@torch.inference_mode()
def _collect(vocabulary: str) -> None:
    folder = BENCH / f"logits-{vocabulary}"
    model = load_causal_lm(teacher_directory(vocabulary), dtype=torch.float32)
    weight_VD = model.get_output_embeddings().weight.detach()
    assert len(weight_VD) == VOCABULARIES[vocabulary].size
    generator = torch.Generator().manual_seed(DRAW_SEED)
    documents = _documents(vocabulary)
    angles: list[tuple[Any, ...]] = []
    for split, wanted in SPLITS.items():
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        tokens: list[npt.NDArray[np.int32]] = []
        position = 0
        started = time.monotonic()
        while sum(map(len, tokens)) < wanted:
            ids = next(documents)
            teacher_PD, student_PD = _hidden_states(model, torch.from_numpy(ids)[None], both=split == "test")
            for start in range(0, len(ids) - 1, CHUNK):
                gold = torch.from_numpy(ids[start + 1 : start + 1 + CHUNK])
                parts.append(_truncated(teacher_PD[start : start + CHUNK] @ weight_VD.T, gold, generator))
            if split == "test":
                where = np.arange(-position % ANGLE_STRIDE, len(ids) - 1, ANGLE_STRIDE)
                angles.append((where + position, ids[where + 1], teacher_PD[where].numpy(), student_PD[where].numpy()))
            tokens.append(ids.astype(np.int32))
            position += len(ids) - 1
        offsets = np.cumsum([0, *map(len, tokens)])
        arrays = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        values = RealLogits(np.concatenate(tokens), offsets, *arrays)
        np.savez(folder / f"{split}.npz", **vars(values))
        print(f"{vocabulary}, {split}: {values.num_tokens} tokens in {time.monotonic() - started:.0f} s", flush=True)
    joined = [np.concatenate(arrays)[:MAX_ANGLE_POSITIONS] for arrays in zip(*angles, strict=True)]
    np.savez(folder / "angles.npz", **vars(AnglePositions(*joined)))


def _hidden_states(model: Any, ids_1T: Tensor, *, both: bool) -> tuple[Tensor, Tensor]:
    """The head's inputs (T − 1, D) of the teacher and, where asked for, of the student."""
    output = model.base_model(input_ids=ids_1T, use_cache=False, output_hidden_states=both)
    teacher_PD = output.last_hidden_state[0, :-1]
    if not both:
        return teacher_PD, teacher_PD
    student_TD = model.base_model.norm(output.hidden_states[model.config.num_hidden_layers - SKIPPED_LAYERS][0])
    return teacher_PD, student_TD[:-1]


def _truncated(logits_CV: Tensor, gold_C: Tensor, generator: torch.Generator) -> tuple[npt.NDArray[Any], ...]:
    """Ids and log-probabilities (C, 160), tail (C), gold (C), ids and log-probabilities of the draws (C, 50)."""
    values_CW, ids_CW = torch.topk(logits_CV, NUM_ENTRIES, dim=1)
    # Ids ascending among equals: sort by id, then stably by value.
    ids_CW, order_CW = ids_CW.sort(dim=1)
    values_CW, order_CW = values_CW.gather(1, order_CW).sort(dim=1, descending=True, stable=True)
    ids_CW = ids_CW.gather(1, order_CW)
    max_C1 = values_CW[:, :1].clone()
    exp_CV = (logits_CV - max_C1).exp_()
    draws_CS = torch.multinomial(exp_CV, NUM_DRAWS, replacement=True, generator=generator)
    kept_C = exp_CV.gather(1, ids_CW).double().sum(1)
    tail_C = exp_CV.scatter_(1, ids_CW, 0.0).sum(1, dtype=torch.float64)
    normaliser_C1 = max_C1.double() + (kept_C + tail_C).log()[:, None]

    def logprobs(values_CX: Tensor) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = (values_CX.double() - normaliser_C1).float().numpy()
        return result

    return (
        ids_CW.int().numpy(),
        logprobs(values_CW),
        (tail_C / (kept_C + tail_C)).log().float().numpy(),
        logprobs(logits_CV.gather(1, gold_C[:, None]))[:, 0],
        draws_CS.int().numpy(),
        logprobs(logits_CV.gather(1, draws_CS)),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    _collect(sys.argv[1])
