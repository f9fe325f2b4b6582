"""What tests sample, and when two samplings of it are the same."""

from __future__ import annotations

import numpy as np

from kit.model.lora import TRAINED
from kit.model.requests import Request

QUESTIONS = (
    "Tom has 3 apples and buys 5 more. How many apples does he have?",
    "A pen costs 2 dollars. Mia buys 7 pens and a book for 12 dollars. How much does she pay?",
    "What is 4 + 9?",
)


# What float32 rounds off the largest logit at these temperatures, which is below 40. The network of
# `double_policy` computes in float64: there a log-probability is off by a few of these, in whatever
# batch it is computed; measured are at most 2.3. In float32 the roundings grow from layer to layer,
# to 53 for a sensitive token, while their root mean square stays below 3.
ROUNDING = 2**-24 * 40


def requests_for(base, adapters=(TRAINED,), samples=4):
    prompts = [tuple(base.prompt_ids([{"role": "user", "content": q}])) for q in QUESTIONS]
    return [
        Request(prompt, (0, i, j), adapter)
        for i, prompt in enumerate(prompts)
        for j in range(samples)
        for adapter in adapters
    ]


def assert_same(a, b):
    """In float64: the same tokens, and log-probabilities but for their rounding."""
    for x, y in zip(a, b, strict=True):
        assert (x.tokens, x.truncated, x.text) == (y.tokens, y.truncated, y.text)
        np.testing.assert_allclose(x.logprobs, y.logprobs, rtol=0, atol=8 * ROUNDING)
