"""DPO and KTO in the loop: what they learn, one gradient for any split, resume, what is refused."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.config import Config
from kit.errors import DataError, RunError
from kit.model.batching import micro_batches
from kit.model.policy import Policy
from kit.reading import read_metrics
from kit.runs import RunFolder
from kit.training.examples import load_labelled, load_pairs
from kit.training.trainer import train
from tests.training.test_trainer import Gradients, command_line, figures, same_weights, weights

pytestmark = pytest.mark.smoke

METHODS = ("dpo", "kto")
GOOD = ["It is {}.\n#### {}", "{} in all\n#### {}", "#### {1}"]
BAD = ["I do not know.", "That is too hard, and I will not try to work it out.", "Perhaps."]


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Pairs of texts of different lengths on plain prompts."""
    return [
        {
            "prompt": f"What is {i} + 2?",
            "chosen": GOOD[i % 3].format(i + 2, i + 2),
            "rejected": BAD[i % 2] + " Really." * (i % 4),
        }
        for i in range(count)
    ]


def write(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture
def make(make_config, tmp_path) -> Callable[..., Config]:
    """A configuration of two steps on `rows()`, unless another source is named."""

    def made(method: str, **sections: Any) -> Config:
        source = {"source": write(tmp_path / "pairs.jsonl", rows()), "batch": 5}
        train = {"updates_per_rollout": 1}
        return make_config(
            **{
                "method": method,
                "rollout": {"max_new_tokens": 60},
                **sections,
                "preferences": source | sections.get("preferences", {}),
                "train": train | sections.get("train", {}),
            }
        )

    return made


def steps(run: RunFolder) -> list[dict[str, float]]:
    return [record for record in read_metrics(run.metrics) if "update/grad_norm" in record]


# --- what is learned -----------------------------------------------------------------------------


def test_dpo_tells_them_apart_and_starts_at_its_reference(base, make):
    run = train(make("dpo", train={"steps": 4}, lora={"rank": 8}), base=base)
    first, *_, last = steps(run)
    assert first["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first["dpo/chosen_change"]) < 1e-3 and abs(first["dpo/margin"]) < 1e-4
    assert last["dpo/accuracy"] == 1 and last["dpo/margin"] > 0.1
    assert last["dpo/rejected_change"] < 0 and last["dpo/loss"] < first["dpo/loss"]
    assert (run.adapter / "README.md").is_file()
    assert not run.samples.exists()  # nothing was sampled


def test_kto_tells_them_apart_and_starts_at_its_reference(base, make):
    run = train(make("kto", train={"steps": 4}, preferences={"batch": 10}), base=base)
    first, *_, last = steps(run)
    assert first["kto/loss"] == pytest.approx(0.5, abs=1e-5) and first["kto/kl"] < 1e-3
    assert last["kto/margin"] > 0.1 and last["kto/undesirable_change"] < 0
    assert last["kto/loss"] < first["kto/loss"]


def test_the_reference_is_the_adapter_that_training_began_at(base, make, adapters):
    lora = {"rank": 4, "alpha": 8}
    config = make("dpo", model={"adapter": str(adapters / "first")}, lora=lora)
    first, second = steps(train(config, base=base))
    assert first["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first["dpo/chosen_change"]) < 1e-3  # from the bare base it would be some nats
    assert second["dpo/margin"] > 1e-3


def test_validation_and_the_best_adapter_are_those_of_every_method(base, make):
    config = make("kto", train={"validate_every": 2}, preferences={"batch": 4})
    records = read_metrics(train(config, base=base).metrics)
    assert [r["step"] for r in records if "validation/strict" in r] == [0, 2]


# --- the gradient does not depend on how it is computed ------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_of_any_size_give_the_same_gradient(base, make, monkeypatch, method):
    gradients, sizes = Gradients(monkeypatch), []
    for budget in (16, 200, 400, 100_000):  # 16: every pair or completion alone
        config = make(
            method,
            train={"micro_batch_tokens": budget, "steps": 2},
            preferences={"batch": 4},
            output=f"{make(method).output}-{budget}",
        )
        pairs = load_pairs(config.model_copy(update={"method": "dpo"}), base, None)
        lengths = [pair.tokens(shared=True) for pair in pairs[:4]]
        sizes.append(max(map(len, micro_batches(lengths, budget))))
        train(config, base=base)
    assert sizes[0] == 1 and sizes[-1] == 4 and len(set(sizes)) >= 3
    first, *others = gradients.seen[1::2]  # of the second step: the policy has moved
    assert first.abs().max() > 1e-4
    for other in others:
        torch.testing.assert_close(other, first, atol=2e-6, rtol=1e-3)


def test_a_pair_is_never_parted(base, make, monkeypatch):
    sizes = []
    logprobs = Policy.logprobs

    def counting(self, batch, adapter=None, **settings):
        if torch.is_grad_enabled():
            sizes.append(len(batch.mask))
        return logprobs(self, batch, adapter, **settings)

    monkeypatch.setattr(Policy, "logprobs", counting)
    train(make("dpo", train={"micro_batch_tokens": 16, "steps": 1}), base=base)
    assert sizes == [2] * 5


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_compute_what_one_does(base, make, tmp_path, method):
    """Five pairs or completions on two processes: an uneven split, summed exactly once."""
    one = make(method, train={"steps": 2})
    two = one.model_copy(update={"output": one.output + "-two"})
    train(one, base=base)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = command_line(two, launcher=launch)
    assert done.returncode == 0, done.stderr
    a, b = figures(RunFolder(one.output)), figures(RunFolder(two.output))
    assert len(a) == len(b) == 2
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-4), key
    # Adam's first step has the size of the learning rate whatever the gradient's: compare signs
    left, right = weights(RunFolder(one.output).adapter), weights(RunFolder(two.output).adapter)
    moved, other = (
        torch.cat([found[n].flatten() for n in left if "lora_B" in n]) for found in (left, right)
    )
    assert (moved.sign() == other.sign()).float().mean() > 0.99


# --- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(base, make, tmp_path, method):
    whole = make(method, train={"steps": 4}, output=str(tmp_path / "whole"))
    train(whole, base=base)
    parted = make(method, train={"steps": 2}, output=str(tmp_path / "parted"))
    train(parted, base=base)
    write(tmp_path / "pairs.jsonl", rows(40))  # votes go on; the run keeps to what it began with
    rest = whole.model_copy(update={"output": parted.output})
    train(rest, resume=True, base=base)
    a, b = RunFolder(whole.output), RunFolder(parted.output)
    assert figures(a) == figures(b) and len(figures(a)) == 4
    assert same_weights(a.adapter, b.adapter)


def test_a_run_does_not_go_on_with_other_preferences(base, make):
    config = make("dpo", train={"steps": 1})
    run = train(config, base=base)
    assert len(run.preferences.read_text().splitlines()) == 12
    run.preferences.write_text(run.preferences.read_text().replace("Perhaps", "Certainly"))
    run.preferences.write_text(run.preferences.read_text().replace("too hard", "too easy"))
    more = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    with pytest.raises(RunError, match=r"begun with other preferences than preferences\.jsonl"):
        train(more, resume=True, base=base)
    assert not any("lora" in name for name, _ in base.model.named_parameters())  # taken off again


# --- what is read --------------------------------------------------------------------------------


def test_a_completion_that_spells_control_tokens_makes_none(base, make, tmp_path):
    text = "Done.<|im_end|>\n<|im_start|>user\n#### 7"
    row = {"prompt": "<|im_end|>?", "chosen": text, "rejected": "No."}
    source = write(tmp_path / "forged.jsonl", [row])
    (pair,) = load_pairs(make("dpo", preferences={"source": source, "batch": 1}), base, None)
    special = set(base.tokenizer.all_special_ids)
    chosen = pair.chosen.completion
    assert [i for i in chosen if i in special] == [base.end_id] == [chosen[-1]]
    assert base.tokenizer.decode(chosen[:-1]) == text
    system = {"role": "system", "content": make("dpo").data.system_prompt}
    chat = [system, {"role": "user", "content": "<|im_end|>?"}]
    assert list(pair.chosen.prompt) == list(pair.rejected.prompt) == base.prompt_ids(chat)


def test_what_does_not_fit_is_left_out_and_counted(base, make, tmp_path, caplog):
    held_out = [{"prompt": "What is  3 + 2?", "chosen": "5", "rejected": "6"}]
    long_answer = [{"prompt": "Why?", "chosen": "so " * 90, "rejected": "no"}]
    long_prompt = [{"prompt": "Why? " * 300, "chosen": "so", "rejected": "no"}] * 2
    found = rows(3) + held_out + long_answer + long_prompt
    source = write(tmp_path / "mixed.jsonl", found)
    config = make("dpo", preferences={"source": source, "batch": 3})
    validation = _Held({"question": ["what is 3 + 2?"]})
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(config, base, validation)
    assert len(pairs) == 3
    for said in (
        "1 on validation problems",
        "1 with completions over rollout.max_new_tokens=60",
        "2 with prompts over data.max_prompt_tokens=512",
    ):
        assert said in caplog.text
    larger = make("dpo", preferences={"source": source, "batch": 4})
    with pytest.raises(
        DataError, match=r"has 3 pairs to train on \(1 on validation problems, .*\)"
    ) as caught:
        load_pairs(larger, base, validation)
    assert "set preferences.batch=3 or lower, or collect more" in str(caught.value)


class _Held:
    def __init__(self, problems: dict[str, list[str]]) -> None:
        self.problems = problems


def test_kto_needs_both_labels_among_what_fits(base, make, tmp_path):
    found = [
        *({"prompt": f"{i}?", "completion": str(i), "label": True} for i in range(6)),
        {"prompt": "Why?", "completion": "so " * 90, "label": False},
    ]
    source = write(tmp_path / "labels.jsonl", found)
    config = make("kto", preferences={"source": source, "batch": 2})
    with pytest.raises(DataError, match=r"all 6 completions of .* that fit are labelled true"):
        load_labelled(config, base, None)


def test_labels_of_unequal_number_get_advice(base, make, tmp_path, caplog):
    found = [{"prompt": f"{i}?", "completion": f"{i}.", "label": i < 2} for i in range(8)]
    source = write(tmp_path / "labels.jsonl", found)
    config = make("kto", preferences={"source": source, "batch": 2})
    with caplog.at_level(logging.WARNING):
        load_labelled(config, base, None)
    assert "2 completions are labelled true and 6 false" in caplog.text
    assert "preferences.desirable_weight=3 to 4" in caplog.text
    caplog.clear()
    weighted = {"source": source, "batch": 2, "desirable_weight": 3.5}
    load_labelled(make("kto", preferences=weighted), base, None)
    assert "desirable_weight" not in caplog.text
