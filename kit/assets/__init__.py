"""The embedded tiny model, and the recipe of the demo."""
