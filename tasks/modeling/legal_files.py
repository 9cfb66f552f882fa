"""Files of a model's folder that its licence may want to go along with whatever is made of the model."""

from __future__ import annotations

LEGAL_FILES = tuple(f"{name}{end}" for name in ("LICENSE", "USE_POLICY", "NOTICE") for end in ("", ".txt", ".md"))
