"""The base, adapters on it as views of one model, and sampling from them."""
