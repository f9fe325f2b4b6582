"""`kit study`: trust regions over staleness and learning rate, tuned, then measured."""
