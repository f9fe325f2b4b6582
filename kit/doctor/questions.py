"""What is asked in every look: a few questions of one kind, each several times."""

from __future__ import annotations

from kit.model.policy import Policy
from kit.model.rollout import Request

QUESTION = "Tom has {} apples and buys {} more. He gives half of them to Mia. How many are left?"


def ask(policy: Policy, prompts: int, group: int, adapter: str) -> list[Request]:
    """A group of requests for each prompt, every one with a seed of its own."""
    requests = []
    for number in range(prompts):
        text = QUESTION.format(3 * number + 2, 40 - number)
        prompt = tuple(policy.base.prompt_ids([{"role": "user", "content": text}]))
        requests += [Request(prompt, (number, member), adapter) for member in range(group)]
    return requests
