"""The loop on the embedded model: exact resume, one gradient for any split, nothing lost."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kit.cli import main
from kit.config import Config
from kit.errors import (
    AdapterError,
    ConfigError,
    DataError,
    ModelError,
    OutOfMemoryError,
    RunError,
    TrainingError,
)
from kit.evaluation.figures import Evaluation
from kit.evaluation.stats import Proportion
from kit.model.lora import TRAINED
from kit.model.policy import Policy
from kit.reading import read_metrics
from kit.recipe import build_config
from kit.runs import RunFolder
from kit.training import checkpoint
from kit.training.checkpoint import latest_checkpoint
from kit.training.optimizer import learning_rate
from kit.training.sft import SFT
from kit.training.trainer import train

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[2]
CLOCKWORK = ("time/", "memory/")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def figures(run: RunFolder) -> list[dict[str, float]]:
    """All metrics but those that measure time and memory."""
    return [
        {k: v for k, v in record.items() if not k.startswith(CLOCKWORK)}
        for record in read_metrics(run.metrics)
    ]


def steps_of(run: RunFolder) -> list[dict[str, float]]:
    return [record for record in read_metrics(run.metrics) if "update/skipped" in record]


def recipe_of(config: Config) -> Path:
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def command_line(config, launcher=(sys.executable,), **environment):
    """`kit train` in a process of its own."""
    return subprocess.run(
        [*launcher, "-m", "kit", "train", str(recipe_of(config))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """(settings, run) of the two steps that most tests ask for; nothing may write in its folder."""
    found: list[tuple[Config, RunFolder]] = []

    def run(make_config) -> tuple[Config, RunFolder]:
        if not found:
            folder = tmp_path_factory.mktemp("finished") / "run"
            config = make_config(train={"validate_every": 2}, output=str(folder))
            found.append((config, train(config, base=base)))
        return found[0]

    return run


# --- one run -------------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_that_explains_itself(make_config, finished):
    config, run = finished(make_config)
    assert run.load_config() == config
    description = run.read_description()
    assert description["status"] == "finished" and description["steps"] == 2
    assert description["base"]["id"] == "embedded" and "torch" in description["versions"]
    assert [record["step"] for record in read_metrics(run.metrics)] == [0, 1, 2, 2]
    samples = [json.loads(line) for line in run.samples.read_text().splitlines()]
    assert {"question", "completion", "reward", "advantage", "strict"} <= samples[0].keys()
    assert all(sum(s["parts"].values()) == pytest.approx(s["reward"]) for s in samples)
    assert latest_checkpoint(run.checkpoints).name == "step-000002"
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_two_processes_do_not_train_in_one_folder(base, make_config):
    config = make_config(train={"steps": 1})
    run = RunFolder(config.output)
    lock = run.open(config, resume=False)  # as another process would
    with pytest.raises(RunError, match="another process is training in"):
        train(config, resume=True, base=base)
    lock.release()
    assert train(config, base=base).read_description()["status"] == "finished"
    assert train(config, resume=True, base=base).exists  # and it was given back


def test_every_lora_b_moves_and_no_base_weight_does(base, make_config):
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    run = train(make_config(train={"steps": 1}), base=base)
    moved = {name: t.abs().max().item() for name, t in weights(run.adapter).items()}
    assert len(moved) == 2 * 7 * base.model.config.num_hidden_layers
    assert all(value > 0 for name, value in moved.items() if "lora_B" in name)
    after = dict(base.model.named_parameters())
    assert after.keys() == before.keys()  # the adapter is off the base again
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_first_update_starts_at_ratio_one_and_the_second_does_not(double_base, make_config):
    # in float64 and with an adapter that is still zero: only the log-probabilities are rounded, by
    # 2e-6 at a time
    run = train(make_config(train={"steps": 1, "updates_per_rollout": 1}), base=double_base)
    (once,) = steps_of(run)
    assert abs(once["ratio/max"] - 1) < 2e-5 and abs(once["ratio/min"] - 1) < 2e-5
    assert once["rollout/engine_gap_max"] < 2e-5
    config = make_config(train={"steps": 1}, output=str(run.path.with_name("second")))
    (twice,) = steps_of(train(config, base=double_base))
    assert twice["ratio/max"] > 1.001
    assert twice["rollout/engine_gap_max"] < 2e-5


@pytest.mark.parametrize(
    ("level", "region"),
    [
        ("token", "clip"),
        ("sequence", "pspo"),
        *(
            pytest.param(level, region, marks=pytest.mark.slow)
            for level, regions in {
                "token": ("noclip", "pspo", "sapo", "cispo", "gmpo", "dppo_kl", "ipo", "vespo"),
                "sequence": ("clip", "noclip", "sapo"),
            }.items()
            for region in regions
        ),
    ],
)
def test_every_objective_trains(base, make_config, region, level):
    config = make_config(
        objective={"trust_region": {"name": region}, "level": level, "beta": 0.01},
        train={"steps": 1},
    )
    (metrics,) = steps_of(train(config, base=base))
    assert metrics["update/not_finite"] == 0 and metrics["update/grad_norm"] > 0


@pytest.mark.slow
def test_training_raises_the_reward_it_is_given(base, make_config):
    """The share of vowels is easy to learn: the policy gradient must have the right sign."""
    config = make_config(
        lora={"rank": 8, "alpha": 16},
        rollout={"prompts_per_step": 4, "group_size": 8, "max_new_tokens": 16},
        reward={"correct": 0.0, "format": 0.0},
        optim={"learning_rate": 3e-3},
        train={"steps": 8, "checkpoint_every": 8},
    )
    rewards = [metrics["reward/mean"] for metrics in steps_of(train(config, base=base))]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.03


def test_gradient_checkpointing_changes_nothing(base, make_config, finished):
    _, plain = finished(make_config)
    saving = train(make_config(model={"gradient_checkpointing": True}), base=base)
    a, b = weights(plain.adapter), weights(saving.adapter)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)
    assert not base.model.is_gradient_checkpointing


def test_eight_bit_adam_trains(base, make_config):
    run = train(make_config(optim={"name": "adamw_8bit"}, train={"steps": 1}), base=base)
    assert steps_of(run)[0]["update/not_finite"] == 0


# --- the gradient does not depend on how it is computed ------------------------------------------


class Gradients:
    """Keeps the summed gradient of every optimizer step."""

    def __init__(self, monkeypatch) -> None:
        self.seen: list[torch.Tensor] = []
        clip = torch.nn.utils.clip_grad_norm_

        def spy(parameters, *args, **kwargs):
            parameters = list(parameters)
            self.seen.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
            return clip(parameters, *args, **kwargs)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)


def test_micro_batches_of_any_size_give_the_same_gradient(base, make_config, monkeypatch):
    gradients = Gradients(monkeypatch)
    for budget in (16, 300, 600, 1200, 100_000):  # 16: every row alone
        config = make_config(
            train={"steps": 1, "updates_per_rollout": 1, "micro_batch_tokens": budget},
            output=make_config().output + str(budget),
        )
        train(config, base=base)
    first, *others = gradients.seen
    assert first.abs().max() > 1e-4
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-6, rtol=1e-4)


def test_groups_without_signal_are_not_computed_and_do_not_matter(base, make_config, monkeypatch):
    """Only rows of groups that differ go through the model, and the denominator stays."""
    rows = []
    logprobs = Policy.logprobs

    def counting(self, batch, adapter=TRAINED, **settings):
        rows.append((adapter, len(batch.mask)))
        return logprobs(self, batch, adapter, **settings)

    monkeypatch.setattr(Policy, "logprobs", counting)
    config = make_config(
        reward={"functions": [{"path": "tests.reward_functions:first_group_only"}]},
        train={"steps": 1, "updates_per_rollout": 1},
    )
    (metrics,) = steps_of(train(config, base=base))
    assert metrics["reward/zero_std_fraction"] == pytest.approx(2 / 3)
    assert sum(count for _, count in rows) == 2 * 4  # one group, with and without the adapter


def test_a_step_without_any_signal_is_skipped_and_counted(base, make_config):
    config = make_config(reward={"functions": [], "correct": 0.0, "format": 0.0})
    run = train(config, base=base)
    assert [metrics["update/skipped"] for metrics in steps_of(run)] == [1.0, 1.0]
    assert all(t.abs().max() == 0 for n, t in weights(run.adapter).items() if "lora_B" in n)


def test_out_of_memory_repeats_the_step_in_smaller_pieces(base, make_config, finished, monkeypatch):
    _, whole = finished(make_config)
    logprobs = Policy.logprobs
    refused = []

    def tight(self, batch, adapter=TRAINED, **settings):
        if len(batch.mask) > 3:
            refused.append(len(batch.mask))
            raise torch.OutOfMemoryError("no room")
        return logprobs(self, batch, adapter, **settings)

    monkeypatch.setattr(Policy, "logprobs", tight)
    pieces = train(make_config(), base=base)
    assert refused
    a, b = steps_of(whole)[0], steps_of(pieces)[0]
    assert a["update/grad_norm"] == pytest.approx(b["update/grad_norm"], rel=1e-4)
    assert a["reward/mean"] == b["reward/mean"]


def test_out_of_memory_with_a_single_row_is_an_error_with_advice(base, make_config, monkeypatch):
    def never(self, *args, **kwargs):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Policy, "logprobs", never)
    with pytest.raises(OutOfMemoryError, match=r"step 1: .*single completion.*max_new_tokens"):
        train(make_config(), base=base)


def test_a_gradient_that_is_not_finite_is_not_applied(base, make_config, monkeypatch):
    logprobs = Policy.logprobs
    calls = []

    def poisoned(self, batch, adapter=TRAINED, **settings):
        values, entropy = logprobs(self, batch, adapter, **settings)
        if adapter == TRAINED:
            calls.append(1)
            if len(calls) == 1:
                values = values * math.inf
        return values, entropy

    monkeypatch.setattr(Policy, "logprobs", poisoned)
    run = train(make_config(train={"updates_per_rollout": 1}), base=base)
    first, second = steps_of(run)
    assert (first["update/not_finite"], second["update/not_finite"]) == (1, 0)
    assert not math.isfinite(first["update/grad_norm"])
    records = [json.loads(line) for line in run.nonfinite.read_text().splitlines()]
    assert records and {r["step"] for r in records} == {1}
    assert all(torch.isfinite(t).all() for t in weights(run.adapter).values())
    assert any(t.abs().max() > 0 for n, t in weights(run.adapter).items() if "lora_B" in n)


def test_too_many_bad_updates_in_a_row_stop_the_run(base, make_config, monkeypatch):
    logprobs = Policy.logprobs

    def poisoned(self, *args, **kwargs):
        values, entropy = logprobs(self, *args, **kwargs)
        return values * math.nan, entropy

    monkeypatch.setattr(Policy, "logprobs", poisoned)
    config = make_config(train={"steps": 9, "max_nonfinite": 3})
    with pytest.raises(TrainingError, match="3 updates in a row"):
        train(config, base=base)
    assert RunFolder(config.output).read_description()["status"] == "failed"


@pytest.mark.slow
def test_two_processes_compute_what_one_does(base, make_config, tmp_path):
    """Five prompts on two processes: an uneven split, summed exactly once.

    `accelerate launch --cpu` would start one process, unless there is MPI; for several GPUs it
    starts what is started here.
    """
    once = {"updates_per_rollout": 1, "steps": 1, "validate_every": 2}
    one = make_config(rollout={"prompts_per_step": 5}, train=once)
    two = one.model_copy(update={"output": one.output + "-two"})
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    train(one, base=base)
    (ranks := tmp_path / "ranks").mkdir()
    done = command_line(two, launcher=launch, KIT_TEST_RANKS=str(ranks))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in ranks.iterdir()) == ["0", "1"]
    a, b = figures(RunFolder(one.output)), figures(RunFolder(two.output))
    assert len(a) == len(b) == 3
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key] == pytest.approx(right[key], rel=1e-4, abs=1e-5), key
    left, right = weights(RunFolder(one.output).adapter), weights(RunFolder(two.output).adapter)
    # Adam's first step has the size of the learning rate whatever the gradient's, so compare signs
    moved = torch.cat([left[n].flatten() for n in left if "lora_B" in n])
    other = torch.cat([right[n].flatten() for n in left if "lora_B" in n])
    assert (moved.sign() == other.sign()).float().mean() > 0.999


# --- stopping and going on -----------------------------------------------------------------------


def resume_config(make_config, name):
    return make_config(
        reward={"functions": [{"path": "tests.reward_functions:act_once"}]},
        train={"steps": 4, "validate_every": 2, "checkpoint_every": 2},
        output=str(Path(make_config().output).with_name(name)),
    )


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_uninterrupted_run(base, make_config, tmp_path):
    whole = resume_config(make_config, "whole")
    train(whole, base=base)
    killed = resume_config(make_config, "killed")
    action = tmp_path / "action"
    action.write_text(f"{int(signal.SIGKILL)} 4")  # in the fourth step, after two checkpoints
    assert command_line(killed, KIT_TEST_ACTION=str(action)).returncode == -signal.SIGKILL
    assert latest_checkpoint(RunFolder(killed.output).checkpoints).name == "step-000002"
    assert RunFolder(killed.output).status == "killed"
    assert main(["train", str(RunFolder(killed.output).path), "--resume"]) == 0
    a, b = RunFolder(whole.output), RunFolder(killed.output)
    assert figures(a) == figures(b) and len(figures(a)) == 4 + 3
    assert a.samples.read_text() == b.samples.read_text()
    assert same_weights(a.adapter, b.adapter)
    assert same_weights(
        a.checkpoints / "step-000004/adapter", b.checkpoints / "step-000004/adapter"
    )


def test_a_run_does_not_go_on_with_an_edited_file(base, make_config, tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is {i} + 2?", "answer": str(i + 2)} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(steps):
        data = {"name": str(path), "options": {}}
        return make_config(data=data, train={"steps": steps})

    train(config(1), base=base)
    text = path.read_text()
    path.write_text(text.replace(" + 2?", " and two?"))
    with pytest.raises(RunError, match="begun with other problems"):
        train(config(2), resume=True, base=base)
    path.write_text(text)
    assert len(figures(train(config(2), resume=True, base=base))) >= 2


def test_ctrl_c_saves_and_says_how_to_go_on(make_config, tmp_path, monkeypatch, caplog):
    config = resume_config(make_config, "stopped")
    action = tmp_path / "action"
    action.write_text(f"{int(signal.SIGINT)} 1")
    monkeypatch.setenv("KIT_TEST_ACTION", str(action))
    assert main(["train", str(recipe_of(config))]) == 130
    run = RunFolder(config.output)
    assert f"kit train {run.path} --resume" in caplog.text
    assert run.read_description()["status"] == "interrupted"
    assert latest_checkpoint(run.checkpoints).name == "step-000001"
    assert main(["train", str(run.path), "--resume"]) == 0  # as the message says
    assert run.read_description()["status"] == "finished"
    assert [r["step"] for r in steps_of(run)] == [1, 2, 3, 4]


def test_a_finished_run_is_not_trained_again(base, make_config):
    config = make_config()
    run = train(config, base=base)
    before = run.metrics.read_text()
    train(config, resume=True, base=base)
    assert run.metrics.read_text() == before
    longer = make_config(train={"steps": 3})
    train(longer, resume=True, base=base)
    assert [r["step"] for r in steps_of(run)] == [1, 2, 3]


def test_an_existing_folder_is_refused(base, make_config, finished, tmp_path):
    config, _ = finished(make_config)
    with pytest.raises(RunError, match=r"already holds a run \(status: finished\); add --resume"):
        train(config, base=base)
    other = make_config(optim={"learning_rate": 5e-4}, output=config.output)
    for resume in (False, True):
        with pytest.raises(RunError, match=r"optim.learning_rate: 0.001 -> 0.0005"):
            train(other, resume=resume, base=base)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("…")
    with pytest.raises(RunError, match="is not a run folder"):
        train(make_config(output=str(tmp_path / "thesis")), base=base)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "…"


def test_a_full_disk_leaves_the_previous_checkpoint(base, make_config, monkeypatch):
    save, calls = torch.save, []

    def full(state, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    config = make_config(train={"steps": 3})
    with pytest.raises(RunError, match=r"No space left on device.*last good one is .*step-000001"):
        train(config, base=base)
    run = RunFolder(config.output)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-000001"]
    monkeypatch.setattr(checkpoint.torch, "save", save)
    train(config, resume=True, base=base)
    assert [r["step"] for r in steps_of(run)] == [1, 2, 3]


def test_the_best_adapter_is_kept_when_a_run_goes_on(base, make_config, monkeypatch):
    """By the accuracy that is rewarded; none before the first step, of equals the later one."""
    right = iter([7, 4, 6, 6, 2])

    def measured(*given, **named):
        strict = next(right)
        return Evaluation(Proportion(strict, 8), Proportion(8 - strict, 8), Proportion(0, 8), 9.0)

    monkeypatch.setattr("kit.training.learner.evaluate", measured)
    schedule = {"validate_every": 1, "keep_checkpoints": 4}
    train(make_config(reward={"strict": True}, train={"steps": 3, **schedule}), base=base)
    config = make_config(reward={"strict": True}, train={"steps": 4, **schedule})
    run = train(config, resume=True, base=base)
    assert next(right, None) is None
    assert run.read_description()["best_validation"] == 6 / 8
    steps = [run.checkpoints / f"step-{step:06}" / "adapter" for step in (1, 2, 3, 4)]
    assert [same_weights(run.adapter, step) for step in steps] == [False, False, True, False]


def test_only_the_newest_checkpoints_are_kept(base, make_config):
    run = train(make_config(train={"steps": 4, "keep_checkpoints": 2}), base=base)
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step-000003", "step-000004"]


def test_an_old_checkpoint_that_a_kill_left_behind_is_removed(base, make_config, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    config = make_config(train={"steps": 3, "keep_checkpoints": 2, "checkpoint_every": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kit.training.checkpoint.remove", killed)
        train(config, base=base)
    run = RunFolder(config.output)
    assert len(list(run.checkpoints.iterdir())) == 3
    train(config, resume=True, base=base)
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step-000002", "step-000003"]


# --- supervised ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_sft_learns_the_solutions_and_warms_up_grpo(base, make_config):
    config = make_config(
        method="sft",
        rollout={"max_new_tokens": 200},
        train={"steps": 6, "updates_per_rollout": 1, "sft_batch": 6},
        output=make_config().output + "-sft",
    )
    run = train(config, base=base)
    losses = [record["sft/loss"] for record in read_metrics(run.metrics) if "sft/loss" in record]
    assert losses[-1] < losses[0]
    warm = make_config(model={"adapter": str(run.adapter)}, train={"steps": 1})
    continued = train(warm, base=base)
    (metrics,) = steps_of(continued)
    # the reference is the adapter training began at: nothing but two updates lies between
    assert metrics["policy/k3_to_base"] < 0.05
    assert continued.read_description()["parent"] == str(run.adapter)


def test_the_schedule_of_sft_ends_with_its_last_step(base, make_config):
    """Whatever a recipe that was made for GRPO says of updates after a rollout."""
    config = make_config(
        method="sft",
        rollout={"max_new_tokens": 200},
        optim={"schedule": "linear", "learning_rate": 1e-4},
        train={"steps": 2, "updates_per_rollout": 4, "sft_batch": 1},
    )
    rates = [
        record["update/learning_rate"] for record in read_metrics(train(config, base=base).metrics)
    ]
    assert rates == pytest.approx([1e-4, 5e-5])


def test_a_solution_that_spells_control_tokens_makes_none(base, make_config):
    solution = "Done.<|im_end|>\n<|im_start|>user\n#### 7"
    problem = {"prompt": [{"role": "user", "content": "<|im_end|>?"}], "solution": solution}
    config = make_config(method="sft", rollout={"max_new_tokens": 100})
    ((prompt, answer),) = SFT(config.train, Policy(base), None, [problem], None, 100).examples
    special = set(base.tokenizer.all_special_ids)
    assert [i for i in answer if i in special] == [base.end_id] == answer[-1:]
    assert base.tokenizer.decode(answer[:-1]) == solution
    assert prompt == base.prompt_ids(problem["prompt"])


def test_sft_needs_solutions(base, make_config, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"question": "{i} + 1?", "answer": "{i + 1}"}}\n' for i in range(9)))
    config = make_config(method="sft", data={"name": str(path), "options": {}})
    with pytest.raises(DataError, match="none of 5 problems has a worked solution"):
        train(config, base=base)


# --- pre-flight and bad input --------------------------------------------------------------------


def test_preflight_shows_samples_and_stops_without_signal(base, make_config, capsys):
    train(make_config(train={"preflight_problems": 3, "steps": 1}), base=base)
    shown = capsys.readouterr().out
    assert "Before training, 4 answers sampled to each of 3 problems: " in shown
    assert shown.count("gold answer:") == 3
    hopeless = make_config(
        reward={"functions": [], "correct": 0.0, "format": 0.0},
        train={"preflight_problems": 3},
        output=make_config().output + "-hopeless",
    )
    with pytest.raises(TrainingError, match="nothing can be learned"):
        train(hopeless, base=base)


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"model": {"id": "nobody/nothing"}}, ModelError, "cannot load the base model"),
        (
            {"model": {"id": "embedded", "adapter": "nowhere"}},
            AdapterError,
            "no adapter at nowhere",
        ),
        ({"data": {"name": "nonsense"}}, DataError, "unknown data set 'nonsense'"),
        ({"data": {"validation_size": 60}}, DataError, "cannot hold out 60"),
        ({"data": {"max_prompt_tokens": 3}}, DataError, "max_prompt_tokens"),
        ({"lora": {"targets": ["no_such_layer"]}}, AdapterError, "no_such_layer"),
    ],
)
def test_bad_input_is_refused_with_its_name(base, make_config, sections, error, message):
    config = make_config(**sections)
    with pytest.raises(error, match=message):
        train(config, base=None if config.model.id != "embedded" else base)
    assert not [n for n, _ in base.model.named_parameters() if "lora" in n]


def test_an_unknown_data_set_is_refused_before_anything_is_loaded(make_config, monkeypatch):
    def never(*_):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("kit.training.trainer.load_base", never)
    config = make_config(data={"name": "gsm9k"})
    with pytest.raises(DataError, match=r"unknown data set 'gsm9k', did you mean 'gsm8k'\?"):
        train(config)
    assert not Path(config.output).exists()


def test_a_base_of_another_model_is_refused(base, make_config):
    config = make_config(model={"id": "Qwen/Qwen2.5-0.5B"})
    with pytest.raises(ConfigError, match=r"passed is embedded, but .* is Qwen/Qwen2\.5-0\.5B"):
        train(config, base=base)
    assert not Path(config.output).exists()


def test_learning_rate_schedules():
    def rates(**settings):
        optim = build_config(
            {
                "model": {"id": "x"},
                "data": {"name": "x"},
                "optim": {"learning_rate": 1.0, **settings},
            }
        ).optim
        return [learning_rate(update, 10, optim) for update in range(10)]

    assert rates(warmup_fraction=0.0) == [1.0] * 10
    # two warm-up updates: a third, two thirds, then constant
    assert rates(warmup_fraction=0.2) == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)
    linear = rates(warmup_fraction=0.0, schedule="linear")
    assert linear == pytest.approx([1 - i / 10 for i in range(10)])
    cosine = rates(warmup_fraction=0.0, schedule="cosine")
    assert cosine[5] == pytest.approx(0.5) and cosine[0] == 1.0 and cosine[9] < 0.05


def test_proportion_has_wilsons_interval():
    # Wilson, z = 1.959964, 8 of 10: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.7167,
    # half width z * sqrt(0.016 + z^2/400) / (1 + z^2/10) = 0.2266
    low, high = Proportion(8, 10).interval
    assert low == pytest.approx(0.4902, abs=1e-4) and high == pytest.approx(0.9433, abs=1e-4)
    assert Proportion(0, 10).interval[0] == 0.0


def test_trackers_get_the_metrics(base, make_config):
    run = train(make_config(train={"report_to": ["tensorboard"], "steps": 1}), base=base)
    assert list(run.path.rglob("events.out.tfevents*"))


def test_much_truncation_is_said_once(base, make_config, caplog):
    with caplog.at_level("WARNING"):
        train(make_config(rollout={"max_new_tokens": 2}), base=base)
    assert caplog.text.count("are cut off at rollout.max_new_tokens=2") == 1


def test_a_run_that_died_before_its_first_checkpoint_starts_over(base, make_config, monkeypatch):
    config = make_config(train={"checkpoint_every": 5, "validate_every": 2})
    monkeypatch.setattr("kit.training.learner.Learner.save", lambda self, step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config, base=base)
    assert RunFolder(config.output).read_description()["status"] == "failed"
    monkeypatch.undo()
    run = train(config, resume=True, base=base)
    assert [record["step"] for record in read_metrics(run.metrics)] == [0, 1, 2, 2]
