"""Evaluate adapters on data sets: completions, figures, statistics."""
