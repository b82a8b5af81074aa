"""Checkpoints of models, and conversion of published ones."""
