"""What a chat model is asked to see whether it comes to an end. No torch, as forecasts count them too."""

from __future__ import annotations

PROMPTS = (
    "What is the capital of France? Answer with one word.",
    "What is 12 + 30? Answer with the number only.",
    "Name a colour.",
    "Say hello.",
    "Is ice colder than steam? Answer yes or no.",
    "Translate to English: Guten Morgen.",
    "Write one short sentence about a dog.",
    "Reverse the word: stone",
)
"""Whoever can end a turn ends these within a few dozen tokens: SmolLM2-135M-Instruct 7 of them within 48, all within
64."""
