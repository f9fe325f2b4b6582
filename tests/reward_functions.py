"""Reward functions with TRL's signature that tests name in configurations."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def share_of_vowels(prompts, completions, **columns):
    """A smooth reward that differs between almost any two completions.

    Each process leaves a file with its rank in the folder that $KIT_TEST_RANKS names.
    """
    if folder := os.environ.get("KIT_TEST_RANKS"):
        (Path(folder) / os.environ["RANK"]).touch()
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c in "aeiou" for c in text) / (len(text) + 1) for text in texts]


def act_once(prompts, completions, **columns):
    """Kill (or interrupt) the process on the call and in the way that the file at
    $KIT_TEST_ACTION says, `<signal number> <call>`, counting down; without it do nothing."""
    path = Path(os.environ.get("KIT_TEST_ACTION", os.devnull))
    if path.is_file():
        number, calls = map(int, path.read_text().split())
        path.write_text(f"{number} {calls - 1}")
        if calls == 1:
            path.unlink()
            os.kill(os.getpid(), signal.Signals(number))
    return share_of_vowels(prompts, completions)


def first_process_only(prompts, completions, **columns):
    """Different within groups on the first process, equal on all others."""
    values = share_of_vowels(prompts, completions)
    return values if os.environ.get("RANK", "0") == "0" else [0.0] * len(values)


def first_group_only(prompts, completions, **columns):
    """Different within the first group, equal in all others."""
    values = share_of_vowels(prompts, completions)
    return [v if prompt == prompts[0] else 0.0 for v, prompt in zip(values, prompts, strict=True)]
