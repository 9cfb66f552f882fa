"""Verifiable tasks made on the spot, and the text that every Python installation has: data without a download."""

from tasks.exercises.exercise import DIFFICULTIES, KINDS, Exercise, Split, generate, is_correct, split_of

__all__ = ["DIFFICULTIES", "KINDS", "Exercise", "Split", "generate", "is_correct", "split_of"]
