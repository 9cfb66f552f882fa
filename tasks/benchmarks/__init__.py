"""Evaluation sets: how a recipe names them, and how the harness loads them. What scores models and what cleans
training data read them here alike."""
