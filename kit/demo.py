"""The embedded example, end to end: three arms, one table, on a laptop's CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kit.config import DEMO_RECIPE, Config
from kit.evaluation.benchmark import benchmark
from kit.evaluation.results import Result
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.files import read_metrics, write_atomically
from kit.model.base import Base, load_base
from kit.model.hardware import peak_memory_mb, reset_peak_memory
from kit.recipe import load_config
from kit.runs import RunFolder, writing
from kit.training.trainer import train_together

ARMS = ("clip", "noclip", "pspo")
TEST_PROBLEMS = 300


def demo(output: Path) -> list[dict[str, Any]]:
    """Train the arms, evaluate base and adapters on held-out problems, write summary.json.

    Arms that are finished already are not trained again; an unfinished one is continued.
    """
    configs = {arm: arm_config(arm, output) for arm in ARMS}
    base = load_base(configs[ARMS[0]].model)
    unfinished = [arm for arm in ARMS if not _is_finished(output / arm)]
    for arm in ARMS:
        if arm not in unfinished:
            print(f"{arm}: finished already, in {output / arm}")
    if unfinished:
        steps = configs[ARMS[0]].train.steps
        print(f"\n{', '.join(unfinished)}: {steps} steps together", flush=True)
        train_together([configs[arm] for arm in unfinished], resume=True, base=base)
    if not all(_is_finished(output / arm) for arm in ARMS):
        return []  # stopped by the user; the trainer has said how to go on
    summary = compare(base, configs, output)
    with writing(output / "summary.json"):
        write_atomically(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(table(summary))
    print(where_to_look(output))
    return summary


def _is_finished(folder: Path) -> bool:
    return RunFolder(folder).status == "finished"


def arm_config(arm: str, output: Path) -> Config:
    """The demo's recipe with one trust region; nothing else differs between arms."""
    return load_config(
        DEMO_RECIPE, [f"objective.trust_region={{name: {arm}}}", f"output={output / arm}"]
    )


def compare(base: Base, configs: dict[str, Config], output: Path) -> list[dict[str, Any]]:
    """Evaluate the base and every arm on the same held-out problems, greedily."""
    recipe = configs[ARMS[0]]
    model, prompt = recipe.model, recipe.data.system_prompt
    targets = [Subject("base", model, None, prompt, output / "base" / "eval")]
    for arm in configs:
        run = RunFolder(output / arm)
        adapter, folder = str(run.adapter), run.path / "eval"
        targets.append(Subject(arm, model, adapter, prompt, folder, str(run.path)))
    settings = EvalSettings(max_new_tokens=recipe.rollout.max_new_tokens, limit=TEST_PROBLEMS)
    reset_peak_memory(base.hardware.device)
    results = benchmark(targets, [recipe.data], settings, base=base)
    peak = peak_memory_mb(base.hardware.device)
    return [_row(result, output / result.name, peak) for result in results]


def _row(result: Result, folder: Path, evaluation_peak: float) -> dict[str, Any]:
    """Figures of one arm; time and memory of training are read from its metrics."""
    metrics = RunFolder(folder).metrics
    steps = (
        [r for r in read_metrics(metrics) if "time/step_seconds" in r] if metrics.exists() else []
    )
    figures = result.at(0.0)
    return {
        "arm": result.name,
        "accuracy": figures["strict"]["value"],
        "ci95": figures["strict"]["ci95"],
        "lenient_accuracy": figures["lenient"]["value"],
        "lenient_ci95": figures["lenient"]["ci95"],
        "n": figures["strict"]["n"],
        "mean_tokens": figures["tokens"]["mean"],
        "train_seconds": sum(r["time/step_seconds"] for r in steps),
        "peak_memory_mb": max([evaluation_peak, *(r["memory/peak_mb"] for r in steps)]),
    }


def table(summary: list[dict[str, Any]]) -> str:
    """The figures as text."""

    def share(value: float, interval: list[float]) -> str:
        return f"{value:6.1%} [{interval[0]:5.1%}, {interval[1]:5.1%}]"

    lines = [
        f"\nAccuracy on {summary[0]['n']} held-out problems, greedy, with 95 % intervals. Strict: "
        "the answer\nstands as '#### <number>'; lenient: anywhere. Where strict rises and lenient "
        "does not,\nthe model has learned the format, not the mathematics.\n",
        f"{'arm':8}{'strict':^25}{'lenient':^25}{'tokens':>8}{'training':>10}{'memory':>10}",
    ]
    lines += [
        f"{row['arm']:8}{share(row['accuracy'], row['ci95']):^25}"
        f"{share(row['lenient_accuracy'], row['lenient_ci95']):^25}"
        f"{row['mean_tokens']:8.0f}{row['train_seconds']:8.0f} s{row['peak_memory_mb']:7.0f} MB"
        for row in summary
    ]
    return "\n".join(lines)


def where_to_look(output: Path) -> str:
    return f"""
Look at what came out:
  {output}/summary.json           the table above
  {output}/pspo/eval/*.jsonl      every held-out problem, completion and verdict
  {output}/pspo/samples.jsonl     completions while training
  {output}/pspo/metrics.jsonl     reward, ratio, entropy, … of every step
  {output}/pspo/adapter/          the adapter, plain PEFT"""
