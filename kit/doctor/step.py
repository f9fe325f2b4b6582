"""One real step of the recipe: does it work, how long does it take, and in how much memory?

The problems are made here and the reward tells all completions apart, so that every row learns:
the step is about the machine, not about what is learned.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kit.config import Config, DataConfig, PreferencesConfig, RewardConfig, RewardFunction
from kit.doctor.findings import Finding, judged, measured, not_measured
from kit.doctor.patient import Patient
from kit.errors import OutOfMemoryError
from kit.estimate.forecast import Forecast
from kit.estimate.memory import FRAGMENTATION, GIB
from kit.files import write_atomically
from kit.reading import read_metrics
from kit.training.engine_gap import TOLERATED, in_words
from kit.training.trainer import train

ALLOWANCES = ("CUDA context", "fragmentation")  # of an estimate: torch's own figures have neither
LEAST_PEAK, MOST_PEAK = 0.4, 1.05  # of the estimate, which is of the longest texts allowed


def step(patient: Patient) -> Iterator[Finding]:
    """Sample, score and update once; then what it took."""
    forecast = None
    if patient.device.type == "cuda":
        forecast = patient.forecast(patient.config)
        if reason := _obstacle(patient, forecast):
            yield not_measured("one step", reason)
            return
    try:
        metrics = _take(patient)
    except OutOfMemoryError as error:
        expected = "a step that fits" if forecast else ""
        yield judged("one step", not expected, str(error), expected, "kit estimate says it fits")
        return
    yield _worked(patient, metrics, forecast)
    if "rollout/engine_gap_mean" in metrics:
        yield _gap(patient, metrics)
    if patient.device.type == "cuda":
        yield from _memory(patient, metrics, forecast)


def tell_apart(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward that differs between almost any two completions."""
    texts = (completion[0]["content"] for completion in completions)
    return [zlib.crc32(text.encode()) % 1000 / 1000 for text in texts]


def one_step(config: Config, folder: str) -> Config:
    """The recipe for one step that every row learns from, and nothing else."""
    problems = max(64, config.rollout.prompts_per_step)
    data = DataConfig(
        name="gsm_symbolic",
        options={"size": problems, "seed": 0},
        validation_size=0,
        system_prompt=config.data.system_prompt,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    path = f"{tell_apart.__module__}:{tell_apart.__name__}"
    once = {"steps": 1, "validate_every": 0, "preflight_problems": 0, "report_to": []}
    return config.model_copy(
        update={
            "data": data,
            "model": config.model.model_copy(update={"adapter": None}),
            "reward": RewardConfig(functions=[RewardFunction(path=path)]),
            "preferences": _preferences(config, folder),
            "train": config.train.model_copy(update=once),
            "output": str(Path(folder) / "run"),
        }
    )


def _preferences(config: Config, folder: str) -> PreferencesConfig:
    """Made here too, where the method learns from them: a short answer before the longest."""
    if not config.learns_from_preferences:
        return config.preferences
    longest = "1 " * ((config.rollout.max_new_tokens - 1) // 2)  # a digit and a space: two tokens
    rows = [
        {"prompt": f"What is {i} + 1?", "chosen": f"#### {i + 1}", "rejected": longest}
        for i in range(config.preferences.batch)
    ]
    source = Path(folder) / "preferences.jsonl"
    write_atomically(source, "".join(json.dumps(row) + "\n" for row in rows))
    return config.preferences.model_copy(update={"source": str(source), "test_problems": True})


def _take(patient: Patient) -> dict[str, Any]:
    """The metrics of the step."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(one_step(patient.config, folder), base=patient.base)
        return read_metrics(run.metrics)[-1]


def _obstacle(patient: Patient, forecast: Forecast | None) -> str:
    """Why the step is not taken: no room, or no time; "" where there is both."""
    if forecast is None:
        return ""
    if not forecast.fits:
        there = forecast.gpu.memory / GIB
        return f"by kit estimate it needs {forecast.peak / GIB:.1f} GiB, there are {there:.1f}"
    least = forecast.seconds.get("one step", (0.0,))[0]
    if least > patient.seconds_left:
        return f"by kit estimate it takes {least:.0f} s or more, and that much time is not left"
    return ""


def _worked(patient: Patient, metrics: dict[str, Any], forecast: Forecast | None) -> Finding:
    """Whether the update was applied, and whether it took as long as estimated."""
    seconds = metrics["time/step_seconds"]
    bad = metrics.get("update/not_finite", 0)
    size = metrics.get("update/grad_norm", metrics.get("sft/loss", 0.0))
    most = None
    if forecast and not patient.is_small:  # which beginning takes longer than
        most = forecast.seconds.get("one step", (None,))[-1]
    limit = f", in at most {most:.0f} s" if most else ""
    speeds = [
        f"{metrics[f'time/{name}_tokens_per_second']:,.0f} tokens/s {words}"
        for name, words in (("rollout", "sampled"), ("update", "updated"))
        if f"time/{name}_tokens_per_second" in metrics
    ]
    return judged(
        f"one step of {patient.base_in_words}",
        bad == 0 and (most is None or seconds <= most),
        ", ".join([f"{seconds:.1f} s", f"gradient norm {size:.2g}", *speeds]),
        f"finite numbers{limit}",
        "the slow end of kit estimate" if most else "problems made here, a reward for every row",
        **{key: value for key, value in metrics.items() if key != "step"},
    )


def _gap(patient: Patient, metrics: dict[str, Any]) -> Finding:
    dtype = patient.base.hardware.dtype
    return judged(
        "sampler against trainer in it",
        metrics["rollout/engine_gap_mean"] <= TOLERATED[dtype],
        in_words(metrics),
        f"at most {TOLERATED[dtype]:g} nats per token",
        "beyond it every run warns",
    )


def _memory(
    patient: Patient, metrics: dict[str, Any], forecast: Forecast | None
) -> Iterator[Finding]:
    """The peak against the estimate, and what the allocator held beyond it."""
    peak = metrics["memory/peak_mb"] * 2**20
    held = torch.cuda.max_memory_reserved(patient.device)
    found = f"{peak / GIB:.2f} GiB"
    if forecast is None:
        yield measured("peak memory", found, bytes=peak)
    else:
        counted = max(
            sum(size for name, size in phase.parts.items() if name not in ALLOWANCES)
            for phase in forecast.phases
        )
        least = 0.0 if patient.is_small else LEAST_PEAK
        yield judged(
            "peak memory",
            least <= peak / counted <= MOST_PEAK,
            f"{found}, {peak / counted:.0%} of the estimate",
            f"{least:.0%} to {MOST_PEAK:.0%} of {counted / GIB:.2f} GiB",
            "kit estimate, without its allowances, is of the longest texts that are allowed",
            bytes=peak,
            estimated=counted,
        )
    share = held / peak - 1
    yield judged(
        "fragmentation",
        share <= 2 * FRAGMENTATION,
        f"{share:.0%} more held than used at the fullest moment",
        f"at most {2 * FRAGMENTATION:.0%}",
        f"kit estimate allows {FRAGMENTATION:.0%} of what comes and goes",
        held=held,
    )
