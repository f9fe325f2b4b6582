"""What the sampler is asked for: completions, and how to draw them."""

from __future__ import annotations

from dataclasses import dataclass

from kit.config import RolloutConfig


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to sample."""

    prompt: tuple[int, ...]  # token ids
    seed: tuple[int, ...]  # e.g. (run seed, place of the problem in the run, sample)
    adapter: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw; temperature 0 is greedy (log-probs are then those at temperature 1)."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_rows: int = 0
    dequantize: str = "auto"
    cuda_graph: bool = True

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are never drawn."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)

    @classmethod
    def from_config(cls, config: RolloutConfig) -> Sampling:
        return cls(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_rows=config.max_rows,
            dequantize=config.dequantize,
            cuda_graph=config.cuda_graph,
        )
