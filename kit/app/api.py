"""The app as an API: one comparison per call, for `gradio_client` and plain HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import gradio as gr

from kit.app.compare.comparison import Comparison, to_pair
from kit.app.compare.setup import LEFT, RIGHT, Setup, check_type
from kit.app.exports import pair_json
from kit.app.session import Session
from kit.errors import KitError

EVERY = 0.2  # seconds between two looks at whether the client is still there


class Api:
    """Endpoints; each call is a session of its own."""

    def __init__(self, desk: Session) -> None:
        self.desk = desk

    def compare(
        self,
        prompt: str,
        left: str,
        right: str,
        answer: str | None = "",
        system_prompt: str | None = None,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Let two adapters answer a problem with the same random numbers.

        Args:
            prompt: the problem.
            left: label of an adapter as the page lists it, "base", or a path the app may load.
            right: likewise.
            answer: the right answer; null or "" where it is not known: the verdicts are null then.
            system_prompt: null is the one the left adapter was trained with.
            temperature: 0 is greedy.
            max_new_tokens: longest completion.
            seed: of the random numbers.

        Returns the prompt as sent, the settings, and for `left` and `right` the completion, the
        answers found, the verdicts (strict and lenient), tokens, seconds, log-prob and divergence;
        before that, while they are written, the completions so far alone. A call that is left or
        cancelled ends at the next of these.
        """
        try:
            check_type("left", left, "text")
            check_type("right", right, "text")
            check_type("answer", answer, "text or null")
            sides = {LEFT: self.desk.choice(left), RIGHT: self.desk.choice(right)}
            setup = Setup(
                question=prompt,
                system_prompt=sides[LEFT].system_prompt if system_prompt is None else system_prompt,
                gold=(answer or "").strip() or None,
                sides=sides,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=seed,
            )
            for comparison in self.desk.run(setup, uuid4().hex):
                if comparison.is_finished:
                    yield pair_json(to_pair(comparison, 0))
                else:
                    yield _written(comparison)
                    time.sleep(EVERY)
        except KitError as error:
            raise gr.Error(str(error), print_exception=False) from error


def _written(comparison: Comparison) -> dict[str, Any]:
    return {
        side: {"completion": comparison.answers[side][0].completion.text} for side in (LEFT, RIGHT)
    }
