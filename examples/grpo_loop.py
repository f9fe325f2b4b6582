"""The whole method on one page, on the kit's own pieces; equal to `kit train` step for step.

    python examples/grpo_loop.py configs/smoke.yaml output=runs/loop

P prompts, G completions of each, B = P * G rows, T tokens of the longest completion. What `kit
train` adds is around this: validation, checkpoints and resuming, several processes, several arms on
one base, and words for what goes wrong.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from kit.adapters.save import save_adapter
from kit.model.base import load_base
from kit.model.batching import pad_values
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from kit.recipe import load_config
from kit.runs import RunFolder
from kit.tasks.rewards import build_reward
from kit.training.data import load_training_data, problem_index
from kit.training.groups import Rollout
from kit.training.objectives import Denominator, LossInputs, group_advantages, policy_loss
from kit.training.optimizer import Optimizer

# --- load: a frozen 4-bit base, a fresh adapter on it, problems, and what scores an answer --------

if len(sys.argv) < 2:
    sys.exit(__doc__)
config = load_config(sys.argv[1], sys.argv[2:])
adapter_folder = Path(config.output) / "adapter"
if adapter_folder.exists() or RunFolder(config.output).has_results:  # a run is never overwritten
    sys.exit(f"error: there is a run in {config.output}; choose another output=…")
train, objective, group = config.train, config.objective, config.rollout.group_size
accelerator = Accelerator(cpu=not torch.cuda.is_available())
base = load_base(config.model, accelerator.device)
problems = load_training_data(config, base.tokenizer).train_set
reward = build_reward(config.reward, problems.verifier)
policy = Policy(base, add_lora(base, config.lora, train.seed, config.model.adapter))
scales_loss = base.hardware.scales_loss
optimizer = Optimizer(policy.trainable, config.optim, train, accelerator, scales_loss)


def requests_of(step):
    """What to sample, G rows for each of the P problems; each row has a seed of its own, so that
    what it says does not depend on its batch."""
    count = config.rollout.prompts_per_step
    for position in range(step * count, (step + 1) * count):
        problem = problems.problems[problem_index(position, len(problems.problems), train.seed)]
        prompt = tuple(base.prompt_ids(problem["prompt"]))
        for number in range(group):
            yield problem, Request(prompt, (train.seed, position, number), policy.trained)


def logprobs_of(rollout, adapter):
    """Log-probabilities and entropies of the completions, and which of (B, T) are tokens."""
    batch = policy.batch(rollout.prompts, rollout.tokens_of)
    settings = {"temperature": config.rollout.temperature, "chunk": train.logprob_chunk}
    return *policy.logprobs(batch, adapter, **settings), batch.mask


def reference_of(rollout):
    """The frozen base's log-probabilities of each row: one pass with the adapter off."""
    found = {}

    def compute(rows):
        values, _, mask = logprobs_of(rollout.select(rows), policy.reference)
        found.update((row, own[real]) for row, own, real in zip(rows, values, mask, strict=True))

    with torch.no_grad():
        optimizer.in_micro_batches(rollout.lengths, compute, policy.shared(rollout.prompts))
    return [found[row].cpu() for row in range(len(rollout))]


def loss_of(rollout, denominator, rows):
    """What the rows of a micro-batch add to the loss of the step."""
    own = rollout.select(rows)
    logprobs, entropy, mask = logprobs_of(own, policy.trained)
    sampler = pad_values(own.sampler, accelerator.device)
    frozen = pad_values(own.reference, accelerator.device)
    inputs = LossInputs(
        logprobs=logprobs,
        old=frozen if objective.resolved_old_policy == "base" else sampler,
        sampler=sampler,
        base=frozen,
        entropy=entropy,
        advantages=own.advantages.to(accelerator.device),
        mask=mask,
    )
    output = policy_loss(inputs, denominator, objective)
    return output.loss, output.stats


# --- train: sample, score, compare within groups, update on what was better -----------------------

for step in range(train.steps):
    asked, requests = zip(*requests_of(step), strict=True)
    completions = sample(policy, requests, Sampling.from_config(config.rollout))

    texts = [completion.text for completion in completions]
    scores = reward([problem["prompt"] for problem in asked], texts, asked)
    rewards = torch.tensor(scores.total, dtype=torch.float64).view(-1, group)  # (P, G)
    advantages = group_advantages(rewards, objective.scale_rewards).flatten().float()  # (B,)

    prompts = [request.prompt for request in requests]
    rollout = Rollout(asked, prompts, completions, advantages)
    longest = config.rollout.max_new_tokens
    denominator = Denominator(rollout.tokens, len(rollout), longest)
    if not objective.needs_all_rows:  # groups whose rewards are all equal teach nothing
        rollout = rollout.select(advantages.nonzero().flatten().tolist())
    rollout = replace(rollout, reference=reference_of(rollout))
    for number in range(train.updates_per_rollout):
        if len(rollout):
            loss_of_rows = partial(loss_of, rollout, denominator)
            shared = policy.shared(rollout.prompts)
            update, _ = optimizer.step(rollout.lengths, loss_of_rows, shared)
            loss = f"loss {update.loss:+.5f} in update {number + 1}"
            print(f"step {step + 1}: reward {rewards.mean():.3f}, {loss}")
        else:
            optimizer.skip()

save_adapter(policy, adapter_folder)
