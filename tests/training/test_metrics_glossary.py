"""docs/metrics.md names every metric that is emitted, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kit.reading import read_metrics
from kit.training.trainer import train

pytestmark = pytest.mark.smoke

GLOSSARY = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_glossary_is_complete(base, make_config, tmp_path):
    config = make_config(guidelines=["one-equation-per-line"], train={"validate_every": 2})
    grpo = train(config, base=base)
    sft = train(
        make_config(
            method="sft",
            rollout={"max_new_tokens": 200},
            train={"steps": 1, "sft_batch": 2, "updates_per_rollout": 1},
            output=make_config().output + "-sft",
        ),
        base=base,
    )
    runs = [grpo, sft]
    pairs = [{"prompt": f"{i} + 1?", "chosen": f"{i + 1}", "rejected": "No."} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for method in ("dpo", "kto"):
        config = make_config(
            method=method,
            preferences={"source": str(tmp_path / "pairs.jsonl"), "batch": 4},
            train={"steps": 1, "updates_per_rollout": 1},
            output=f"{make_config().output}-{method}",
        )
        runs.append(train(config, base=base))
    emitted = {key for run in runs for record in read_metrics(run.metrics) for key in record}
    of_guidelines = {
        "adherence/one-equation-per-line",
        "reward/one-equation-per-line.equations",
    }
    assert of_guidelines <= emitted
    emitted -= {"step", "reward/share_of_vowels"} | of_guidelines
    explained = set(re.findall(r"`(\w+/\w+)`", GLOSSARY.read_text(encoding="utf-8")))
    assert emitted == explained
