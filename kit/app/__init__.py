"""`kit app`: the reasoning of several adapters side by side, in the browser."""
