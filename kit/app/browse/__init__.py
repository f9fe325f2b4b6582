"""The Browse tab: stored answers of evaluations."""
