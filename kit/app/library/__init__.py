"""What is on disk: adapters, runs, results."""
