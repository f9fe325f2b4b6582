"""Tokens per second while decoding, with steps that are called and with steps that are replayed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kit.config import Config
from kit.doctor.findings import Finding, judged, measured
from kit.doctor.patient import Patient
from kit.doctor.questions import ask
from kit.model.policy import BASE, Policy
from kit.model.rollout import Sampling, sample

PROMPTS, GROUP = 8, 8
TOKENS = {True: 32, False: 128}  # of every row: in the small form, in the full one


def decoding(patient: Patient) -> Iterator[Finding]:
    """64 rows of one length, none of which stops early; steps called, and replayed from graphs."""
    if patient.device.type == "cpu":
        return
    policy = Policy(replace(patient.base, stop_ids=frozenset()))
    tokens = TOKENS[patient.is_small]
    called = _speed(policy, Sampling(tokens, cuda_graph=False))
    yield _called(patient, tokens, called)
    speed = _speed(policy, Sampling(tokens))
    obstacle = policy.base.replay.obstacle
    yield judged(
        "decoding, replayed",
        not obstacle and speed >= called,
        obstacle or f"{speed:,.0f} tokens/s, {speed / called:.2f} times as fast",
        "recorded as CUDA graphs, and no slower than called",
        "a step launches more than a thousand kernels, each of which the host asks for",
        speed=speed,
    )


def _called(patient: Patient, tokens: int, speed: float) -> Finding:
    what = "decoding, called"
    found = f"{speed:,.0f} tokens/s, {PROMPTS * GROUP} rows of {patient.base_in_words}"
    # kit estimate is for larger models
    bounds = None if patient.is_small else _expected(patient, tokens)
    if bounds is None:
        return measured(what, found, speed=speed)
    return judged(
        what,
        bounds[0] <= speed,
        found,
        f"{bounds[0]:,.0f} to {bounds[1]:,.0f} tokens/s, or more",
        "kit estimate's range for this card",
        speed=speed,
    )


def _speed(policy: Policy, sampling: Sampling) -> float:
    """Tokens per second, prompts included, after a short turn without counting."""
    requests = ask(policy, PROMPTS, GROUP, BASE)
    sample(policy, requests, replace(sampling, max_new_tokens=4))
    started = time.perf_counter()
    said = sample(policy, requests, sampling)  # which ends with a wait for the card
    return sum(len(one.tokens) for one in said) / (time.perf_counter() - started)


def _expected(patient: Patient, tokens: int) -> tuple[float, float] | None:
    """Slowest and fastest by `kit estimate`; None where it does not know model or card."""
    rollout = patient.config.rollout.model_copy(
        update={"prompts_per_step": PROMPTS, "group_size": GROUP, "max_new_tokens": tokens}
    )
    settings: dict[str, Any] = {"method": "grpo", "rollout": rollout}
    config: Config = patient.config.model_copy(update=settings)
    forecast = patient.forecast(config)
    if forecast is None or "sampling" not in forecast.seconds:
        return None
    least, *_, most = forecast.seconds["sampling"]
    count = PROMPTS * GROUP * tokens
    return count / most, count / 2 / least  # the fast end is of texts of half the length
