"""GR-PSPO kit: train LoRA adapters on a 4-bit base with smoothed or clipped trust regions."""

__version__ = "0.1.0"
