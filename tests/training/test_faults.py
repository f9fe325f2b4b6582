"""What goes wrong inside a model or for want of memory: named, saved, and undone.

Memory runs out where these tests say so, by an exception that allocators raise; a fault in numbers
is put into a weight or a layer.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pty
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

from kit.adapters.probe import take_probe
from kit.cli import main
from kit.comparison import Study
from kit.config import DataConfig, LoraConfig, ModelConfig
from kit.errors import (
    ModelError,
    NotFiniteError,
    OutOfMemoryError,
    RewardError,
    TrainingError,
    is_out_of_memory,
)
from kit.evaluation.benchmark import benchmark
from kit.evaluation.results import read_rows
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.model import decoding, rollout
from kit.model.base import _check_supported
from kit.model.decoding import Buffers
from kit.model.dequantized import dequantized
from kit.model.draw import Chosen, choose
from kit.model.finite import first_bad_weight, watched
from kit.model.lora import TRAINED, add_lora
from kit.model.mixed_lora import mixed_lora
from kit.model.policy import BASE, Policy
from kit.model.prefill import Prompts
from kit.model.rollout import Request, Sampling, sample, stream
from kit.reading import read_metrics
from kit.runs import RunFolder
from kit.training import trainer
from kit.training.checkpoint import latest_checkpoint
from kit.training.grpo import GRPO
from kit.training.optimizer import UpdateResult
from kit.training.trainer import train, train_together

pytestmark = pytest.mark.smoke

CPU_ALLOCATOR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
)
NO_ROOM = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    CPU_ALLOCATOR,
]


def requests(base, adapters=(TRAINED,), samples=2):
    prompt = tuple(base.prompt_ids([{"role": "user", "content": "What is 4 + 9?"}]))
    return [Request(prompt, (0, i), name) for i in range(samples) for name in adapters]


@contextmanager
def faulty(layer, value=math.nan, calls=0) -> Iterator[None]:
    """After so many calls a layer's output holds this value at its first place."""
    counter = itertools.count()

    def spoil(module, inputs, output):
        if next(counter) >= calls:
            output = output.clone()
            output.view(-1)[0] = value
        return output

    handle = layer.register_forward_hook(spoil, prepend=True)
    try:
        yield
    finally:
        handle.remove()


SMALL = {
    "data": {"validation_size": 2},
    "rollout": {"prompts_per_step": 2, "group_size": 3, "max_new_tokens": 10},
}


def rescued(make_config, **sections):
    """A run of three steps that saves nothing of itself before the last."""
    train = {"steps": 3, "checkpoint_every": 9, **sections.pop("train", {})}
    return make_config(train=train, **SMALL, **sections)


def patched_layers(model) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


# --- numbers that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_numbers_are_no_sample_and_name_the_first_layer(policy, temperature, value):
    layer = policy.causal.get_submodule("model.layers.1.mlp")
    sampling = Sampling(6, temperature=temperature)
    with faulty(layer, value), pytest.raises(NotFiniteError) as caught:
        sample(policy, requests(policy.base), sampling)
    assert "the output of model.layers.1.mlp is not finite" in str(caught.value)
    assert "in the adapter when token 1 " in str(caught.value)
    assert caught.value.request == requests(policy.base)[0]
    assert not patched_layers(policy.causal)
    with faulty(layer, value), pytest.raises(NotFiniteError, match=r"layers\.1\.mlp is not"):
        list(stream(policy, requests(policy.base), sampling))


def test_bad_numbers_in_the_middle_name_the_token(policy):
    calls = 3  # reading the prompt, and two tokens
    layer = policy.causal.get_submodule("model.layers.0.self_attn.o_proj")
    with faulty(layer, calls=calls), pytest.raises(NotFiniteError, match="when token 4 after"):
        sample(policy, requests(policy.base), Sampling(9))


def test_a_fault_that_does_not_come_again_is_still_an_error(policy, monkeypatch):
    monkeypatch.setattr(
        decoding,
        "choose",
        lambda *given: choose(*given)._replace(logprobs=torch.tensor([math.nan])),
    )
    with pytest.raises(NotFiniteError, match="they are when the same tokens are read at once"):
        sample(policy, requests(policy.base, samples=1), Sampling(3))


def test_the_weight_at_fault_is_named(policy):
    name = "model.layers.1.self_attn.q_proj.lora_A.default"
    weight = policy.causal.get_submodule(name).weight
    with torch.no_grad():
        weight[0, 0] = math.nan
    with pytest.raises(NotFiniteError, match=rf"{name}\.weight holds NaN"):
        sample(policy, requests(policy.base), Sampling(3))
    with pytest.raises(NotFiniteError, match="logits; it is not saved"):
        take_probe(policy)
    healthy = sample(policy, requests(policy.base, [BASE]), Sampling(3))
    assert all(math.isfinite(value) for row in healthy for value in row.logprobs)


def test_in_a_mixed_batch_the_adapter_at_fault_is_named_and_no_other(policy):
    """A NaN among the A matrices, side by side, reaches every adapter's rows."""
    add_lora(policy.base, LoraConfig(rank=4, alpha=8), 1, name="arm1", model=policy.peft)
    with torch.no_grad():
        policy.causal.get_submodule("model.layers.0.mlp.up_proj.lora_A.arm1").weight[1, 2] = (
            math.inf
        )
    rows = requests(policy.base, [TRAINED, BASE, "arm1"])
    with pytest.raises(NotFiniteError, match=r"lora_A\.arm1\.weight holds NaN or inf") as caught:
        sample(policy, rows, Sampling(3))
    assert caught.value.request.adapter == "arm1"
    assert not patched_layers(policy.causal)


def test_rows_that_have_ended_may_hold_anything(policy):
    """They stay in the batch until enough of them do; what is computed for them is not used."""
    prompt = torch.ones(1, 1, dtype=torch.long)
    read = Prompts(DynamicCache(), prompt, torch.zeros(1, 9), torch.zeros(2).long(), prompt[0])
    drawn = Buffers.of(requests(policy.base), read, 4)
    columns, stops = torch.arange(4).split(1), torch.tensor([7])
    drawn.record(Chosen(torch.tensor([7, 1]), torch.zeros(2), None), columns[0], stops)
    bad = Chosen(torch.tensor([3, 2]), torch.tensor([math.nan, -1.0]), torch.ones(2).double())
    drawn.record(bad, columns[1], stops)
    assert drawn.finished.tolist() == [True, False]
    assert not drawn.bad.any() and drawn.lengths.tolist() == [1, 2]
    assert drawn.cut_off.tolist() == [0.0, 1.0]


def test_watching_tells_inputs_from_outputs_and_weights():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with watched(model) as found:
        model(torch.ones(1, 2))
    assert found == []
    with watched(model) as found:
        model(torch.tensor([[1.0, math.inf]]))
    assert found == ["the input of 0 is not finite"]
    with torch.no_grad():
        model[1].bias[0] = math.inf
    with watched(model) as found:
        model(torch.ones(1, 2))
    assert found == ["1.bias holds NaN or infinite numbers"]
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model)
    weights = {
        "a": torch.full((3,), 3e38),
        "b": torch.tensor([1, 2]),
        "c": torch.tensor([-math.inf]),
    }
    assert first_bad_weight(weights) == "c"  # large is not infinite
    assert first_bad_weight({"a": weights["a"]}) is None and first_bad_weight({}) is None


def test_a_base_with_bad_numbers_is_told_from_one_that_caps_its_logits(base):
    layer = base.model.get_submodule("model.layers.0.mlp.down_proj")
    said = r"tiny computes NaN .*layers\.0\.mlp\.down_proj"
    with faulty(layer), pytest.raises(ModelError, match=said):
        _check_supported(base.model, "tiny")


def test_a_step_with_bad_numbers_names_step_and_problem(base, make_config):
    config = make_config()
    with (
        faulty(base.model.get_submodule("model.layers.1.mlp")),
        pytest.raises(TrainingError, match=r"step 1, problem \S+: NaN .*layers\.1\.mlp"),
    ):
        train(config, base=base)
    assert RunFolder(config.output).status == "failed"


def test_validation_with_bad_numbers_names_the_problem(base, make_config):
    with (
        faulty(base.model.get_submodule("model.layers.1.mlp")),
        pytest.raises(TrainingError, match=r"validation after 0 steps, problem \S+: NaN"),
    ):
        train(make_config(train={"validate_every": 2}), base=base)


def test_an_arm_with_bad_numbers_leaves_the_others_as_they_would_be_alone(
    base, make_config, monkeypatch
):
    output = Path(make_config().output)

    def config(name, rate):
        return rescued(
            make_config,
            optim={"learning_rate": rate},
            train={"steps": 2},
            output=str(output.with_name(name)),
        )

    check = trainer.Learner.check_weights

    def spoil(arm, step):  # after its first step
        check(arm, step)
        if arm.run.path.name == "bad":
            arm.policy.trainable[0].data[0, 0] = math.nan

    monkeypatch.setattr(trainer.Learner, "check_weights", spoil)
    bad, good = train_together([config("bad", 1e-3), config("good", 2e-3)], base=base)
    alone = train(config("alone", 2e-3), base=base)
    failed = bad.read_description()
    assert failed["status"] == "failed" and good.status == "finished"
    assert failed["error"].startswith("step 2, problem ") and "lora_A.default" in failed["error"]
    a, b = (load_file(run.adapter / "adapter_model.safetensors") for run in (good, alone))
    for name, weight in a.items():
        # Adam makes updates of 2e-3 out of gradients of any size, whose last digits depend on the
        # other rows in the batch; a step that is missed or done twice differs by 2e-3
        torch.testing.assert_close(weight, b[name], atol=4e-4, rtol=0)
    assert good.samples.read_text().count("\n") == alone.samples.read_text().count("\n") > 0


def test_an_update_that_breaks_the_weights_is_undone_and_named(base, make_config, monkeypatch):
    """A checkpoint never holds NaN: the last good state is saved."""
    step = torch.optim.AdamW.step
    calls = []

    def breaking(self, *args, **kwargs):
        step(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:  # in the second of two steps with two updates each
            self.param_groups[0]["params"][3].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    config = make_config(train={"checkpoint_every": 9, "steps": 3})
    with pytest.raises(
        TrainingError, match=r"step 2: .*NaN or infinite numbers in \S+lora_\S+, so"
    ):
        train(config, base=base)
    run = RunFolder(config.output)
    assert latest_checkpoint(run.checkpoints).name == "step-000001"
    saved = load_file(run.checkpoints / "step-000001/adapter/adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in saved.values())


@pytest.mark.parametrize("is_main", [True, False])
def test_rows_of_all_processes_are_written_by_one(is_main):
    """Two that append to one file at the same time write into each other's lines."""
    written = []
    completion = SimpleNamespace(tokens=[4, 5], logprobs=[-0.1, -0.2])
    rollout = SimpleNamespace(problems=[{"id": "a"}], prompts=[(1, 2)], completions=[completion])
    process = SimpleNamespace(
        accelerator=SimpleNamespace(process_index=1, is_main_process=is_main),
        run=SimpleNamespace(
            nonfinite="nonfinite.jsonl", append=lambda *given: written.append(given)
        ),
        optimizer=SimpleNamespace(nonfinite_in_a_row=2, check_progress=lambda where: None),
        _everyone=lambda records: [[{"process": 0}], records],
    )
    GRPO._check(process, 3, rollout, UpdateResult(math.inf, math.inf, 1e-3, applied=False))
    if not is_main:
        assert written == []
        return
    ((path, records),) = written
    assert (path, [record["process"] for record in records]) == ("nonfinite.jsonl", [0, 1])
    assert records[1]["id"] == "a" and records[1]["step"] == 4


def test_a_loss_that_is_not_finite_names_the_layer_and_all_its_rows(
    base, make_config, monkeypatch, caplog
):
    """The sampler's pass is sound, the trainer's is not."""
    logprobs = Policy.logprobs

    def spoiled(self, *args, **kwargs):
        with faulty(self.causal.get_submodule("model.layers.1.mlp")):
            return logprobs(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "logprobs", spoiled)
    config = make_config(train={"steps": 3, "max_nonfinite": 3})
    with pytest.raises(TrainingError, match="step 2: 3 updates in a row"):
        train(config, base=base)
    assert caplog.text.count("the output of model.layers.1.mlp is not finite") == 1
    lines = RunFolder(config.output).nonfinite.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines].count(2) > 0  # the last one's too


def targets_of(base, adapters, tmp_path) -> list[Subject]:
    model = ModelConfig(id="embedded")
    return [
        Subject("embedded", model, None, "Solve it.", tmp_path / "base"),
        Subject("second", model, str(adapters / "second"), "Solve it.", tmp_path / "second"),
    ]


def evaluation(tmp_path, base, targets, **settings):
    data = DataConfig(name="gsm_symbolic", options={"size": 60})
    return benchmark(
        targets, [data], EvalSettings(max_new_tokens=8, limit=4, **settings), base=base
    )


def test_an_evaluation_with_bad_numbers_names_target_problem_and_layer(base, adapters, tmp_path):
    targets = targets_of(base, adapters, tmp_path)
    with (
        faulty(base.model.get_submodule("model.layers.1.mlp")),
        pytest.raises(
            NotFiniteError,
            match=r"(embedded|second) on gsm_symbolic, problem \S+, temperature 0, sample 0: NaN "
            r".*layers\.1\.mlp",
        ),
    ):
        evaluation(tmp_path, base, targets)
    assert all(
        result.record["status"] == "finished" for result in evaluation(tmp_path, base, targets)
    )


# --- truncated sampling --------------------------------------------------------------------------


def test_what_top_p_cuts_off_is_measured():
    # 0.4 + 0.3 = 0.7 reaches 0.65: 0.2 + 0.1 are cut off; with top_k=1 it is 0.6
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    half = torch.tensor([0.5])
    assert choose(logits, half, Sampling(1, top_p=0.65)).cut_off.item() == pytest.approx(
        0.3, abs=1e-6
    )
    assert choose(logits, half, Sampling(1, top_k=1)).cut_off.item() == pytest.approx(0.6, abs=1e-6)
    assert choose(logits, half, Sampling(1)).cut_off is None
    assert choose(logits, half, Sampling(1, top_p=0.65, temperature=0.0)).cut_off is None


def test_a_completion_knows_how_much_was_cut_off_its_tokens(policy):
    rows = requests(policy.base, samples=3)
    whole = sample(policy, rows, Sampling(12))
    assert {row.cut_off for row in whole} == {0.0}
    nucleus = sample(policy, rows, Sampling(12, top_p=0.9))
    for row in nucleus:
        # the smallest set that reaches 0.9 leaves at most 0.1 of each token
        assert 0 < row.cut_off <= 0.1 * len(row.tokens)
    together = sum(row.cut_off for row in nucleus)
    alone = sum(sample(policy, [row], Sampling(12, top_p=0.9))[0].cut_off for row in rows)
    assert together == pytest.approx(alone, rel=1e-3)


def test_truncation_is_said_once_in_words_and_followed_in_the_metrics(base, make_config, caplog):
    output = make_config().output
    configs = [
        make_config(
            rollout={**SMALL["rollout"], "top_p": 0.8},
            optim={"learning_rate": rate},
            output=f"{output}-{rate}",
        )
        for rate in (1e-3, 2e-3)
    ]
    runs = train_together(configs, base=base)
    assert caplog.text.count("every importance ratio is measured against") == 1
    for run in runs:
        shares = [record["rollout/mass_cut_off"] for record in read_metrics(run.metrics)]
        assert len(shares) == 2 and all(0.01 < share < 0.2 for share in shares)
    (said,) = (record for record in caplog.records if "importance ratio" in record.msg)
    first = [read_metrics(run.metrics)[0]["rollout/mass_cut_off"] for run in runs]
    assert said.args[0] / 100 == pytest.approx(sum(first) / 2, rel=0.1)
    caplog.clear()
    plain = train(make_config(train={"steps": 1}), base=base)
    assert read_metrics(plain.metrics)[0]["rollout/mass_cut_off"] == 0
    assert "importance ratio" not in caplog.text


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((error, True) for error in NO_ROOM),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("expected scalar type Float"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_memory_are_known(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("error", NO_ROOM)
def test_sampling_halves_and_at_the_smallest_size_says_so(policy, monkeypatch, error):
    sizes = []

    def never(policy, rows, sampling):
        sizes.append(len(rows))
        raise error

    monkeypatch.setattr(rollout, "_decode", never)
    with pytest.raises(OutOfMemoryError, match=r"a single completion of up to 20 tokens after"):
        sample(policy, requests(policy.base), Sampling(20))
    assert sizes == [2, 1]


def test_another_error_while_sampling_is_not_taken_for_memory(policy, monkeypatch):
    def broken(policy, rows, sampling):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(rollout, "_decode", broken)
    with pytest.raises(RuntimeError, match="scalar type"):
        sample(policy, requests(policy.base), Sampling(20))


def fail_at(monkeypatch, module, name, number, error):
    """The call of this number, counted from 1, of module.name raises."""
    function, counter = getattr(module, name), itertools.count(1)

    def failing(*args, **kwargs):
        if next(counter) == number:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize("error", NO_ROOM)
def test_layers_are_whole_again_when_memory_runs_out_while_they_are_patched(
    policy, monkeypatch, error, caplog
):
    import bitsandbytes as bnb

    from kit.model import mixed_lora as mixed

    hardware = policy.base.hardware
    fail_at(monkeypatch, bnb.functional, "dequantize_4bit", 4, error)
    said = r"unpacking .*rollout\.dequantize=never"
    with (
        pytest.raises(OutOfMemoryError, match=said),
        dequantized(policy.causal, "always", hardware),
    ):
        pass
    assert not patched_layers(policy.causal)
    monkeypatch.undo()
    fail_at(monkeypatch, bnb.functional, "dequantize_4bit", 4, error)
    with dequantized(policy.causal, "auto", hardware) as done:  # it is a matter of speed
        assert not done and not patched_layers(policy.causal)
    assert "decoding from packed weights" in caplog.text
    monkeypatch.undo()
    fail_at(monkeypatch, mixed, "_stacked", 4, error)
    with pytest.raises(type(error)), mixed_lora(policy.peft, [TRAINED]):
        pass
    assert not patched_layers(policy.causal)


def test_other_errors_inside_leave_no_patch_either(policy):
    with pytest.raises(KeyError), dequantized(policy.causal, "always", policy.base.hardware):
        raise KeyError
    with pytest.raises(KeyError), mixed_lora(policy.peft, [TRAINED]):
        raise KeyError
    assert not patched_layers(policy.causal)


@pytest.mark.parametrize("error", NO_ROOM)
def test_a_plain_forward_while_loading_says_what_to_do(monkeypatch, error):
    from kit.model import base

    def never(model, name):
        raise error

    monkeypatch.setattr(base, "_check_supported", never)
    with pytest.raises(ModelError, match=r"not enough (GPU|machine) memory to load 'embedded'"):
        base.load_base(ModelConfig(id="embedded"), torch.device("cpu"))


@pytest.fixture(scope="module")
def unharmed(base, tmp_path_factory):
    """The run to which nothing happens, of the configuration of whoever asks first."""
    found: list[RunFolder] = []

    def run(make_config) -> RunFolder:
        if not found:
            output = str(tmp_path_factory.mktemp("unharmed") / "run")
            config = rescued(make_config, train={"validate_every": 2}, output=output)
            found.append(train(config, base=base))
        return found[0]

    return run


def figures(run: RunFolder) -> list[dict[str, float]]:
    return [
        {key: v for key, v in record.items() if not key.startswith(("time/", "memory/"))}
        for record in read_metrics(run.metrics)
    ]


def assert_same_run(a: RunFolder, b: RunFolder) -> None:
    assert figures(a) == figures(b)
    left, right = (load_file(run.adapter / "adapter_model.safetensors") for run in (a, b))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("where", "number", "steps"),
    [
        # in the third step's sampling
        pytest.param("decode", 3, 2, marks=pytest.mark.slow),
        # in the second step's second update, after its first is applied
        pytest.param("logprobs", 8, 1, marks=pytest.mark.slow),
        pytest.param("adam", 4, 1, marks=pytest.mark.slow),  # in the same, half applied
        ("validation", 2, 2),  # of the second step
    ],
)
def test_out_of_memory_saves_and_goes_on_as_if_nothing_had_been(
    base, make_config, monkeypatch, unharmed, where, number, steps
):
    expected = unharmed(make_config)
    config = rescued(make_config, train={"validate_every": 2})
    error = torch.OutOfMemoryError("CUDA out of memory")
    if where == "decode":
        fail_from(
            monkeypatch,
            rollout,
            "_decode",
            error,
            lambda rows: (
                rows[0].adapter == TRAINED and len(rows[0].seed) == 3 and rows[0].seed[1] >= 4
            ),
        )
    elif where == "validation":
        calls = itertools.count(1)
        evaluate = trainer.Learner._evaluate

        def failing(arm, problems):
            if next(calls) == number:
                raise error
            return evaluate(arm, problems)

        monkeypatch.setattr(trainer.Learner, "_evaluate", failing)
    elif where == "adam":
        step, calls = torch.optim.AdamW.step, itertools.count(1)

        def half(self, *args, **kwargs):
            result = step(self, *args, **kwargs)
            if next(calls) == number:
                raise error
            return result

        monkeypatch.setattr(torch.optim.AdamW, "step", half)
    else:
        logprobs, updates = Policy.logprobs, []

        def tight(self, batch, adapter=TRAINED, **settings):
            if adapter == TRAINED and len(updates) >= 3:
                raise error
            return logprobs(self, batch, adapter, **settings)

        step = torch.optim.AdamW.step

        def counted(self, *args, **kwargs):
            updates.append(1)
            return step(self, *args, **kwargs)

        monkeypatch.setattr(Policy, "logprobs", tight)
        monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    with pytest.raises(OutOfMemoryError) as caught:
        train(config, base=base)
    run = RunFolder(config.output)
    said = str(caught.value)
    assert (
        f"The {steps} steps before are saved; continue with: kit train {run.path} --resume" in said
    )
    assert "rollout.dequantize=never" in said and "lower rollout.max_new_tokens" in said
    assert latest_checkpoint(run.checkpoints).name == f"step-{steps:06d}"
    assert run.status == "interrupted" and run.read_description()["error"] == said
    monkeypatch.undo()
    assert main(["train", str(run.path), "--resume", "train.logprob_chunk=300"]) == 0
    assert "error" not in run.read_description()
    assert_same_run(run, expected)


def fail_from(monkeypatch, module, name, error, when):
    function = getattr(module, name)

    def failing(policy, rows, sampling):
        if when(rows):
            raise error
        return function(policy, rows, sampling)

    monkeypatch.setattr(module, name, failing)


def test_out_of_memory_before_the_first_step_says_what_to_lower(base, make_config, monkeypatch):
    def never(*args, **kwargs):
        raise CPU_ALLOCATOR

    monkeypatch.setattr(rollout, "_decode", never)
    config = make_config(train={"preflight_problems": 3})
    with pytest.raises(OutOfMemoryError, match=r"single completion .*lower rollout\.max_new"):
        train(config, base=base)
    monkeypatch.setattr(trainer.Learner, "begin", never)
    with pytest.raises(OutOfMemoryError, match=r"looking at the model before .*max_rows=1"):
        train(config, base=base, resume=True)


def test_a_reward_that_fails_saves_the_steps_before(base, make_config, monkeypatch, unharmed):
    from tests import reward_functions

    expected = unharmed(make_config)
    calls = itertools.count(1)
    vowels = reward_functions.share_of_vowels

    def leaving(prompts, completions, **columns):
        if next(calls) == 3:
            raise SystemExit(0)
        return vowels(prompts, completions)

    leaving.__name__ = "share_of_vowels"
    monkeypatch.setattr(reward_functions, "share_of_vowels", leaving)
    config = rescued(make_config, train={"validate_every": 2})
    with pytest.raises(RewardError, match="raised SystemExit: 0"):
        train(config, base=base)
    run = RunFolder(config.output)
    assert latest_checkpoint(run.checkpoints).name == "step-000002"
    assert run.status == "interrupted"  # a comparison takes it up again
    monkeypatch.undo()
    assert_same_run(train(config, base=base, resume=True), expected)


def test_memory_that_runs_out_in_a_comparison_leaves_no_arm_behind(
    base, make_config, monkeypatch, tmp_path
):
    arms = {
        name: rescued(make_config, optim={"learning_rate": rate}, train={"steps": 2})
        for name, rate in (("one", 1e-3), ("two", 2e-3))
    }
    study = Study(tmp_path / "study", arms, [0])
    study.describe(status="running")
    when = lambda rows: rows[0].seed[1] >= 2  # noqa: E731  # in the second step
    fail_from(monkeypatch, rollout, "_decode", torch.OutOfMemoryError("no room"), when)
    with pytest.raises(OutOfMemoryError, match="1 steps before are saved; the same command"):
        study.train(0, base)
    assert {study.run(arm, 0).status for arm in arms} == {"interrupted"}
    monkeypatch.undo()
    assert study.train(0, base)
    for arm in arms:
        run = study.run(arm, 0)
        assert run.status == "finished"
        assert [record["step"] for record in read_metrics(run.metrics)] == [1, 2]


@pytest.mark.parametrize("error", NO_ROOM[1:])
def test_an_evaluation_out_of_memory_keeps_its_rows_and_says_how_to_go_on(
    base, adapters, tmp_path, monkeypatch, error
):
    monkeypatch.setattr("kit.evaluation.sampling.CHUNK_TOKENS", {"cpu": 1})  # row by row
    targets = targets_of(base, adapters, tmp_path)
    fail_at(monkeypatch, rollout, "_decode", 4, error)
    with pytest.raises(OutOfMemoryError, match=r"3 of 8 answers are written.*lower max_new_tokens"):
        evaluation(tmp_path, base, targets)
    assert not patched_layers(base.model)
    rows = [row for path in tmp_path.rglob("*.jsonl") for row in read_rows(path)]
    assert len(rows) == 3
    monkeypatch.undo()
    assert all(
        result.record["status"] == "finished" for result in evaluation(tmp_path, base, targets)
    )


def test_the_command_line_has_no_traceback_for_memory(monkeypatch, capsys):
    def never(output):
        raise CPU_ALLOCATOR

    monkeypatch.setattr("kit.demo.demo", never)
    assert main(["demo"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: out of memory: ") and shown.count("\n") == 1


# --- signals -------------------------------------------------------------------------------------


@pytest.fixture
def signals(monkeypatch, tmp_path):
    """Let the reward function of tests.reward_functions send this process signals."""

    def ask(number: int, call: int = 1) -> None:
        (tmp_path / "action").write_text(f"{int(number)} {call}")
        monkeypatch.setenv("KIT_TEST_ACTION", str(tmp_path / "action"))

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield ask
    assert before == {n: signal.getsignal(n) for n in before}


def acting(make_config, **sections):
    return rescued(
        make_config,
        reward={"functions": [{"path": "tests.reward_functions:act_once"}]},
        **sections,
    )


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_saves_as_sigterm_does(base, make_config, signals, number):
    config = acting(make_config)
    signals(number, 2)
    run = train(config, base=base)
    assert run.status == "interrupted"
    assert latest_checkpoint(run.checkpoints).name == "step-000002"


def test_a_hangup_that_comes_twice_does_not_stop_at_once(base, make_config, monkeypatch):
    """The shell and the system both tell of a closed terminal; a shutdown adds SIGTERM."""
    from tests import reward_functions

    def act(prompts, completions, **columns):
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return reward_functions.share_of_vowels(prompts, completions)

    monkeypatch.setattr(reward_functions, "act_once", act)
    run = train(acting(make_config), base=base)
    assert latest_checkpoint(run.checkpoints).name == "step-000001"


def test_nohup_is_left_alone(base, make_config, signals):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals(signal.SIGHUP)
        run = train(acting(make_config, train={"steps": 2}), base=base)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.status == "finished"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_an_evaluation_stops_as_after_ctrl_c(base, adapters, tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr("kit.evaluation.sampling.CHUNK_TOKENS", {"cpu": 1})
    targets = targets_of(base, adapters, tmp_path)
    decode, counter = rollout._decode, itertools.count(1)

    def acting(*args):
        if next(counter) == 4:
            os.kill(os.getpid(), number)
        return decode(*args)

    monkeypatch.setattr(rollout, "_decode", acting)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        evaluation(tmp_path, base, targets)
    assert "stopped; 3 of 8 answers are written" in caplog.text
    assert signal.getsignal(number) == before and not patched_layers(base.model)
    assert all(
        result.record["status"] == "finished" for result in evaluation(tmp_path, base, targets)
    )


CLOSED = """
import signal, sys, time
from kit.stopping import HANGUP, on_signals
seen = []
with on_signals(seen.append, HANGUP):
    print("ready", flush=True)
    while not seen:
        time.sleep(0.01)
    for stream in (sys.stdout, sys.stderr):  # a dead terminal would raise here
        stream.write("saving\\n")
        stream.flush()
open(sys.argv[1], "w").write(str(seen))
"""


def test_output_to_a_terminal_that_was_closed_is_no_error(tmp_path):
    """The saving must not die of its own progress bar."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-c", CLOSED, str(tmp_path / "seen")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "seen").read_text() == f"[{int(signal.SIGHUP)}]"
