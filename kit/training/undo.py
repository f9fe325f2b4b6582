"""What a step changes, kept so that it can be undone."""

from __future__ import annotations

from typing import Any

import torch

from kit.model.policy import Policy
from kit.training.checkpoint import random_state, set_random_state
from kit.training.optimizer import Optimizer


class Undo:
    """Weights, optimizer and random state as they are now, in the machine's memory."""

    def __init__(self, policy: Policy, optimizer: Optimizer) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self._weights = [_copied(parameter.detach()) for parameter in policy.trainable]
        self._state = _copied(optimizer.state_dict())
        self._random = random_state()

    @property
    def weights_changed(self) -> bool:
        """Whether any weight of the trained adapter is another than it was."""
        pairs = zip(self.policy.trainable, self._weights, strict=True)
        return any(not torch.equal(_copied(parameter), before) for parameter, before in pairs)

    def __call__(self) -> None:
        """Go back to what was."""
        with torch.no_grad():
            for parameter, before in zip(self.policy.trainable, self._weights, strict=True):
                parameter.copy_(before)
                parameter.grad = None
        self.optimizer.load_state_dict(self._state)
        set_random_state(self._random)


def _copied(state: Any) -> Any:
    """A nested state with its tensors copied to the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_copied, state))
    return state
