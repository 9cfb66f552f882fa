"""What a checkpoint's files may name. DeepSpeed unpickles them with all that pickle can do, which is to call anything.

Whoever can write to a store that several people share could else run code in the next one's training.
"""

from __future__ import annotations

from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from tasks.artifacts.errors import CorruptArtifactError

KNOWN = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
"""All that DeepSpeed 0.19.8 writes for ZeRO 1 to 3, beside what torch itself takes for harmless."""
TEXTS = frozenset({"latest", "steps.json", "zero_to_fp32.py", "zero_to_torch.py"})
"""Files that are no pickles. Every other one is looked at: DeepSpeed finds some by the beginning of their name."""


def refuse_foreign_pickles(directory: Path) -> None:
    """Reads what the pickles of a checkpoint name, without unpickling.

    Raises:
        CorruptArtifactError: one of them names something that no training writes, or cannot be read.
    """
    for path in sorted(directory.rglob("*")):
        if path.name in TEXTS or not path.is_file():
            continue
        try:
            foreign = sorted(set(get_unsafe_globals_in_checkpoint(path)) - KNOWN)
        except Exception as error:
            # Unknown instructions, too: what cannot be read here may do anything there.
            raise CorruptArtifactError(
                f"{path} is not what a training writes ({type(error).__name__}: {error}); delete the folder "
                f"checkpoints/ and run again"
            ) from error
        if foreign:
            raise CorruptArtifactError(
                f"{path} would call {foreign[0]} when it is loaded, which no training writes; find out who put it "
                f"there, delete the folder checkpoints/ and run again"
            )
