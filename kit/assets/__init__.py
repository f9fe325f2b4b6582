"""The embedded models, and the recipe of each."""
