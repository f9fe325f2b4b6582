"""The Training tab: curves of runs."""
