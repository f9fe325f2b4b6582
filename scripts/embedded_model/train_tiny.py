"""Train an embedded model: Qwen2.5's architecture, generated problems, mixed ways of answering.

    python scripts/embedded_model/train_tiny.py word_problems --wide --out wide
    python scripts/embedded_model/train_tiny.py sums --out sums

Everything is generated: the problems come from reasoning_gym (word_problems.py, sums.py), the
tokenizer is trained on them, and the weights start at random. Like any pre-trained model these
have read answers of many kinds, and reinforcement learning has something to improve: in
word_problems few answers end in the line '#### <number>' that the system message asks for, in sums
many jump to a wrong answer or work it out wrongly.
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import sums
import torch
import word_problems
from tokenizers import pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from kit.config import ModelConfig
from kit.evaluation.figures import evaluate
from kit.evaluation.stats import Proportion, pass_at_k
from kit.model.base import load_base
from kit.model.policy import BASE, Policy
from kit.model.rollout import Sampling
from kit.recipe import load_config
from kit.tasks.problems import load_problems

KNOWS = {"word_problems": word_problems, "sums": sums}
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def make_tokenizer(texts: list[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train Qwen2's byte-level BPE on the texts; every digit stands alone, any text is covered."""
    blank = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    blank.train_from_iterator(texts, trainer)
    trained = json.loads(blank.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def make_model(tokenizer: Qwen2Tokenizer, shape: dict[str, int]) -> Qwen2ForCausalLM:
    """Build the model, weights random; each linear width is a multiple of NF4's block of 64."""
    pad, end = tokenizer.convert_tokens_to_ids([PAD, END])
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        **shape,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen2ForCausalLM(config)
    look_back(model)
    model.generation_config = GenerationConfig(
        bos_token_id=pad, eos_token_id=[end, pad], pad_token_id=pad, max_new_tokens=256
    )
    return model


@torch.no_grad()
def look_back(model: Qwen2ForCausalLM, strength: float = 6.0) -> None:
    """Start the first heads of layer 0 as heads that attend one, two and three tokens back.

    A head that knows the previous token is what in-context copying is built on, and finding it
    from random weights takes thousands of steps. The biases alone can express it: with k = (c, 0)
    and q the same vector rotated n positions back, rotary attention peaks n tokens before.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    half = attention.head_dim // 2
    theta = config.rope_parameters["rope_theta"]
    frequencies = theta ** (-torch.arange(half) / half)
    size = strength * (frequencies > 0.05)
    attention.k_proj.bias[:half] = size
    for head in range(config.num_attention_heads // config.num_key_value_heads):
        angle = (head + 1) * frequencies
        query = torch.cat((size * angle.cos(), -size * angle.sin()))
        attention.q_proj.bias[head * 2 * half : (head + 1) * 2 * half] = query


Example = tuple[list[int], list[bool]]  # tokens, and which of them the loss counts


def encode(tokenizer: Qwen2Tokenizer, parts: list[tuple[str, bool]]) -> Example:
    """Tokenize the concatenation of (text, is a target) parts; parts must split at word borders."""
    ids: list[int] = []
    targets: list[bool] = []
    for text, target in parts:
        new = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids += new
        targets += [target] * len(new)
    return ids, targets


def examples(
    tokenizer: Qwen2Tokenizer,
    knows: ModuleType,
    pool: list,
    sheets: float,
    copying: int,
    rng: random.Random,
) -> Iterator[Example]:
    """Encode every problem once in one style, and mix in sheets of auxiliary lines.

    Arithmetic sheets run through the whole training. Copying sheets, words in random order and
    then once more, go with the first `copying` problems: the model soon learns to look things up.
    """
    for i, problem in enumerate(pool):
        prompt = tokenizer.apply_chat_template(
            problem.messages, tokenize=False, add_generation_prompt=True
        )
        yield encode(tokenizer, [(prompt, False), (knows.styled(problem, rng) + END, True)])
        if rng.random() < sheets:
            lines = knows.sheet(pool, rng)
            yield encode(tokenizer, [part for a, b in lines for part in ((a, False), (b, True))])
        if i < copying and rng.random() < 4 * sheets:
            words = problem.question.split()
            line = " ".join(rng.sample(words, len(words))) + "\n"
            yield encode(tokenizer, [(line, False), (line + PAD, True)])


def batches(data: list[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Yield batches of examples of similar length, so that padding is nearly nil."""
    for start in range(0, len(data), 64 * size):
        window = sorted(data[start : start + 64 * size], key=lambda example: len(example[0]))
        groups = [window[i : i + size] for i in range(0, len(window), size)]
        yield from rng.sample(groups, len(groups))


def batch_loss(model: Qwen2ForCausalLM, batch: list[Example], denominator: float) -> torch.Tensor:
    """Return the cross-entropy of the target tokens, the only ones the output layer sees.

    The denominator is a constant: batches hold examples of similar length, and a mean over the
    batch's own targets would give the tokens of short answers many times their weight.
    """
    width = max(len(ids) for ids, _ in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, (ids, targets) in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = torch.tensor(targets)
    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[mask[:, 1:]])
    targets = tokens[:, 1:][mask[:, 1:]]
    return functional.cross_entropy(logits, targets, reduction="sum") / denominator


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalized by Newton-Schulz iterations, in float32 for the CPU.

    Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("momentum", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(mean, group["momentum"])
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(x.T if tall else x, alpha=-group["lr"] * scale)


def schedule(progress: float) -> float:
    """Return the learning-rate factor: a short warm-up, a plateau, then linearly down to zero."""
    return max(0.0, min(1.0, progress / 0.02, (1 - progress) / 0.65))


def export(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Save float16 weights, configuration and tokenizer."""
    copy.deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)


def measure(folder: Path, recipe: Path, count: int) -> None:
    """Print accuracy on held-out problems in NF4, greedy and at temperature 1, and some answers."""
    policy = Policy(load_base(ModelConfig(id=str(folder)), torch.device("cpu")))
    config = load_config(recipe)
    held_out = load_problems(config.data.model_copy(update={"limit": count}), "test")
    trained_on = set(load_problems(config.data, "train").problems["question"])
    assert trained_on.isdisjoint(held_out.problems["question"])
    for temperature, samples in ((0.0, 1), (1.0, 8)):
        sampling = Sampling(config.rollout.max_new_tokens, temperature=temperature)
        results = [evaluate(policy, BASE, held_out, sampling, seed=s) for s in range(samples)]
        print(f"temperature {temperature:g}, {results[0].mean_tokens:.0f} tokens")
        for kind in ("strict", "lenient"):
            right = np.array([[row[kind] for row in result.rows] for result in results]).T  # (P, K)
            every = Proportion.of_samples(right)
            print(f"  {kind}: {every}, pass@{samples} {pass_at_k(right, samples).value:.1%}")
        for row in results[0].rows[: min(6, count // 50)]:
            print(f"\n{row['question']}\n--- answer {row['answer']}\n{row['completion']}")


def train(args: argparse.Namespace) -> None:
    """Generate, tokenize, train and export; stop at the last step or minute, whichever is first."""
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    knows = KNOWS[args.knows]
    seed = knows.TRAIN_SEED * (1 + args.seed)
    pool = knows.training_problems(args.steps * args.batch, seed, wide=args.wide)
    if args.init:
        tokenizer = Qwen2Tokenizer.from_pretrained(args.init)
        model = Qwen2ForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    else:
        tokenizer = make_tokenizer(knows.corpus(pool, rng), args.vocab)
        model = make_model(tokenizer, knows.SHAPE)
    copying = 0 if args.init else len(pool) // 8
    data = list(examples(tokenizer, knows, pool, args.sheets, copying, rng))
    denominator = args.batch * sum(sum(targets) for _, targets in data) / len(data)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(data):,} examples")

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers = [Muon(matrices, args.lr), torch.optim.AdamW(others, 0.003, weight_decay=0.0)]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    start, mean, seen = time.time(), 0.0, 0
    for step, batch in enumerate(batches(data, args.batch, rng), 1):
        progress = max(step / args.steps, (time.time() - start) / 60 / args.minutes)
        if progress >= 1:
            break
        loss = batch_loss(model, batch, denominator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule(progress)
            optimizer.step()
        model.zero_grad()
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        seen += sum(len(ids) for ids, _ in batch)
        if step % 50 == 0:
            minutes = (time.time() - start) / 60
            speed = seen / 60 / minutes
            print(f"step {step}  {minutes:.1f} min  loss {mean:.4f}  {speed:,.0f} tokens/s")
        if step % args.measure == 0:
            export(model, tokenizer, args.out)
            measure(args.out, knows.RECIPE, count=60)
    export(model, tokenizer, args.out)


def main() -> None:
    """Read the options, train, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("knows", choices=KNOWS, help="what the model is to know")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--wide", action="store_true", help="use twice as many templates")
    parser.add_argument("--init", type=Path, help="model folder to continue from")
    parser.add_argument("--steps", type=int, default=3500, help="optimizer steps")
    parser.add_argument("--minutes", type=float, default=33, help="stop training after these")
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--lr", type=float, default=0.01, help="Muon's peak learning rate")
    parser.add_argument("--sheets", type=float, default=0.12, help="arithmetic sheets per problem")
    parser.add_argument("--vocab", type=int, default=2048, help="most tokens in the vocabulary")
    parser.add_argument("--measure", type=int, default=600, help="steps between measurements")
    parser.add_argument("--problems", type=int, default=300, help="problems of the final figures")
    parser.add_argument("--seed", type=int, default=0, help="problems and order of the data")
    args = parser.parse_args()
    train(args)
    measure(args.out, KNOWS[args.knows].RECIPE, args.problems)


if __name__ == "__main__":
    main()
