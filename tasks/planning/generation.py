"""What it costs to evaluate a model: prompts that are read, and answers that are written token by token.

Reading is a forward pass. Writing reads all weights once for each token of a batch, so with B answers at a time

    seconds = answers · tokens / B · max(weights / bandwidth, B · FLOPs of a token / FLOP/s)
"""

from __future__ import annotations

from tasks.artifacts.frozen import Frozen

ITEMS: dict[str, tuple[int, bool]] = {
    "leaderboard_ifeval": (541, True),
    "leaderboard_bbh": (5761, False),
    "leaderboard_gpqa": (1192, False),
    "leaderboard_mmlu_pro": (12032, False),
    "leaderboard_musr": (756, False),
    "leaderboard_math_hard": (1324, True),
}
"""Items of a task of lm-eval, and whether it is answered in text."""


class Reading(Frozen):
    """What one model does in an evaluation."""

    prompt_tokens: float = 0
    answers: float = 0
    answer_tokens: float = 0
    """Of each answer."""

    def __add__(self, other: Reading) -> Reading:
        total = self.answers + other.answers
        written = self.answers * self.answer_tokens + other.answers * other.answer_tokens
        return Reading(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            answers=total,
            answer_tokens=written / total if total else 0,
        )


def writing_seconds(
    reading: Reading, *, batch: int, weight_bytes: float, bandwidth: float, flops_a_token: float, flops: float
) -> float:
    """Seconds for the answers; `bandwidth` in bytes/s, `flops` what the device does in a second."""
    steps = reading.answers * reading.answer_tokens / batch
    return steps * max(weight_bytes / bandwidth, batch * flops_a_token / flops)
