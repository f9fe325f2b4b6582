"""Three adapters evaluated at once against one after the other.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--quick]

`kit evaluate` with the base in memory: problems loaded, completions sampled, judged and written.
The adapters are random, small enough for answers to look like the base's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import Size, Table, against, benchmark, measured_base, paired

from kit.adapters.save import save_adapter
from kit.config import DEMO_RECIPE, SYSTEM_PROMPT, LoraConfig, ModelConfig
from kit.evaluation.benchmark import benchmark as evaluate
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.model.base import Base
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.recipe import load_config

ADAPTERS = 3
DATA = ["data.options={size: 400, seed: 0}", "data.categories=null"]


def main() -> None:
    benchmark(str(__doc__), (adapters,))


def adapters(size: Size) -> Table:
    """Evaluation of three adapters, at once and one after the other"""
    with measured_base(size) as base, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subjects = [make_subject(base, folder, number) for number in range(ADAPTERS)]
        data = load_config(DEMO_RECIPE, DATA).data
        limit = size.prompts * size.group
        settings = EvalSettings(max_new_tokens=size.tokens, limit=limit)

        def answers(of: Sequence[Subject]) -> None:
            evaluate(of, [data], settings, base=base, overwrite=True)

        def together(_: int) -> float:
            answers(subjects)
            return 1

        def alone(_: int) -> float:
            for subject in subjects:
                answers([subject])
            return 1

        speeds = paired({"kit, at once": together, "one after the other": alone}, size.runs)
    note = f"{limit} problems each, greedy, at most {size.tokens} tokens."
    return Table("", against(speeds), note, runs=speeds)


def make_subject(base: Base, folder: Path, number: int) -> Subject:
    policy = Policy(base, add_lora(base, LoraConfig(), seed=number))
    with torch.no_grad():
        for weight in policy.trainable:
            weight.add_(torch.randn_like(weight), alpha=1e-3)
    place = folder / f"adapter{number}"
    save_adapter(policy, place)
    policy.peft.unload()
    model = ModelConfig(id=base.id, quantization="none")
    return Subject(place.name, model, str(place), SYSTEM_PROMPT, folder / "eval" / place.name)


if __name__ == "__main__":
    main()
