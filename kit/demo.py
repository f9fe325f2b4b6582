"""The embedded example, end to end: four arms, one table, what differs, on a laptop's CPU."""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

from kit.comparison import Study
from kit.config import DEMO_RECIPE, Config
from kit.evaluation.results import Result
from kit.evaluation.settings import EvalSettings
from kit.files import write_atomically
from kit.model.base import load_base
from kit.model.hardware import peak_memory_mb, reset_peak_memory
from kit.reading import read_metrics
from kit.recipe import load_config
from kit.reports.collect import collect
from kit.reports.evidence import BASE
from kit.reports.paired import compare_arms
from kit.reports.scores import measure_scores
from kit.runs import RunFolder, writing

# by name, the trust region; clip-zero is the clipped arm of the script published with PSPO
ARMS = {
    "clip": "{name: clip}",
    "clip-zero": "{name: clip, epsilon_low: 0, epsilon_high: 0}",
    "noclip": "{name: noclip}",
    "pspo": "{name: pspo}",
}
TEST_PROBLEMS = 500
WHAT_ELSE = (
    "All arms have one learning rate, and another may suit another arm. pspo measures its ratio "
    "from the base, the others from the policy that sampled; noclip bounds it nowhere, clip-zero "
    "clips it at 1, as the script published with PSPO does"
)


def demo(output: Path) -> list[dict[str, Any]]:
    """Train the arms, evaluate base and adapters on held-out problems, write summary.json.

    Arms that are finished already are not trained again; an unfinished one is continued.
    """
    arms = {arm: arm_config(arm, output) for arm in ARMS}
    recipe = next(iter(arms.values()))
    seed = recipe.train.seed
    study = Study(output, arms, [seed], place="{arm}")
    with study.alone():
        ended = [arm for arm in ARMS if study.run(arm, seed).has_ended]
        for arm in ended:
            print(f"{arm}: {study.run(arm, seed).status} already, in {output / arm}")
        if len(ended) < len(ARMS):
            print(what_comes(recipe), flush=True)
        study.describe(status="running", data=[recipe.data.name], command=_command(output))
        base = load_base(recipe.model)
        if not study.train(seed, base):
            return []  # stopped by the user, who has been told how to go on
        settings = EvalSettings(max_new_tokens=recipe.rollout.max_new_tokens, limit=TEST_PROBLEMS)
        print(
            f"\nthe base and the {len(ARMS)} adapters on {TEST_PROBLEMS} held-out problems",
            flush=True,
        )
        reset_peak_memory(base.hardware.device)
        results = study.evaluate(base, [recipe.data], settings, _command(output))
        peak = peak_memory_mb(base.hardware.device)
    summary = [_row(result, peak) for result in results]
    with writing(output / "summary.json"):
        write_atomically(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(table(summary))
    print(what_differs(output))
    print(where_to_look(output))
    return summary


def arm_config(arm: str, output: Path) -> Config:
    """The demo's recipe with one trust region, and the old policy that goes with it by default."""
    return load_config(
        DEMO_RECIPE, [f"objective.trust_region={ARMS[arm]}", f"output={output / arm}"]
    )


def what_comes(recipe: Config) -> str:
    """What is about to be done, and about how long it takes."""
    return (
        f"{', '.join(ARMS)}: {recipe.train.steps} training steps each, together, then "
        f"{TEST_PROBLEMS} held-out problems.\nThis takes two to five minutes on two free CPU "
        "cores; Ctrl-C stops it, and the same command goes on."
    )


def _command(output: Path) -> str:
    return shlex.join(["kit", "demo", "--output", str(output)])


def _row(result: Result, evaluation_peak: float) -> dict[str, Any]:
    """Figures of one arm; time and memory of training are read from its metrics."""
    run = result.record["target"]["run"]
    metrics = read_metrics(RunFolder(run).metrics) if run else []
    steps = [record for record in metrics if "time/step_seconds" in record]
    figures = result.at(0.0)
    return {
        "arm": result.name if run else "base",
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
        "the answer\nstands as '#### <number>'; lenient: anywhere. Where both rise, mathematics is "
        "learned: the\nbase often jumps to an answer, takes steps in the wrong order, or slips. "
        "Where both fall,\nthe updates went too far.\n",
        f"{'arm':10}{'strict':^25}{'lenient':^25}{'tokens':>8}{'training':>10}{'memory':>10}",
    ]
    lines += [
        f"{row['arm']:10}{share(row['accuracy'], row['ci95']):^25}"
        f"{share(row['lenient_accuracy'], row['lenient_ci95']):^25}"
        f"{row['mean_tokens']:8.0f}{row['train_seconds']:8.0f} s{row['peak_memory_mb']:7.0f} MB"
        for row in summary
    ]
    return "\n".join(lines)


def what_differs(output: Path) -> str:
    """Each arm against the clipped one on the same problems, in the words of `kit report`."""
    evidence = collect([output])
    contrasts = compare_arms(evidence, measure_scores(evidence))
    said = [str(c) for c in contrasts if c.measure == "strict" and c.b.arm != BASE]
    said.append(WHAT_ELSE)
    return "\n" + "\n".join(textwrap.fill(f"{sentence}.", 98) for sentence in said)


def where_to_look(output: Path) -> str:
    return f"""
Look at what came out:
  {output}/summary.json           the table above
  {output}/pspo/eval/*.jsonl      every held-out problem, completion and verdict
  {output}/pspo/samples.jsonl     completions while training
  {output}/pspo/metrics.jsonl     reward, ratio, entropy, … of every step
  {output}/pspo/adapter/          the adapter, plain PEFT

Next, see the arms answer side by side:
  {next_command(output)}"""


def next_command(output: Path) -> str:
    """How to open the app on what is in `output`; by default it searches `runs`."""
    if Path("runs") in output.parents:
        return "kit app (or make app)"
    return shlex.join(["kit", "app", "--runs", str(output)])
