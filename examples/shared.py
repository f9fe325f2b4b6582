"""What the TRL examples share: arguments, the adapter to continue, and problems."""

import argparse
import re

import torch
from datasets import Dataset, load_dataset
from peft import PeftModel
from prompts import Prompts, guard
from transformers import AutoModelForCausalLM, AutoTokenizer

SYSTEM = "Solve the problem step by step, then give the final answer as '#### <number>'."
BF16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--base", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--adapter", default="runs/qwen2.5-0.5b-instruct-pspo/adapter")
    parser.add_argument("--data", help="JSONL with `question` and `answer`; default: GSM8K")
    parser.add_argument("--out", default="continued", help="folder for the new adapter")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64, help="completions per optimizer step")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest completion")
    return parser.parse_args()


def load_policy(args: argparse.Namespace):
    """The base with the adapter on it, trainable, and the tokenizer."""
    dtype = torch.bfloat16 if BF16 else torch.float32
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype)
    # PEFT keeps the adapter's weights in float32
    model = PeftModel.from_pretrained(base, args.adapter, is_trainable=True)
    # with the template it learned with; what data says stays text, even where it says <|im_end|>
    tokenizer = guard(AutoTokenizer.from_pretrained(args.adapter))
    # a base that was not tuned for chat names its end of text alone, and adapters end a turn
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = Prompts(tokenizer).ends(ends)
    return model, tokenizer


def load_problems(path: str | None) -> Dataset:
    """Rows with `prompt` (chat messages) and `answer`, a solution that ends in `#### <number>`."""
    rows = (
        load_dataset("json", data_files=path, split="train")
        if path
        else load_dataset("openai/gsm8k", "main", split="train")
    )

    def row(question: str, answer: str) -> dict:
        system, user = {"role": "system", "content": SYSTEM}, {"role": "user", "content": question}
        # GSM8K's calculator notes, <<6*7=42>>, are not for the model
        return {"prompt": [system, user], "answer": re.sub(r"<<.*?>>", "", answer)}

    return rows.map(row, input_columns=["question", "answer"], remove_columns=rows.column_names)


def correct(completions: list, answer: list[str], **_) -> list[float]:
    """TRL's reward signature: 1 for the right number after `####`, 0 for anything else."""
    given = [_numbers(messages[0]["content"]) for messages in completions]
    wanted = [_numbers(solution) for solution in answer]
    return [float(a[-1:] == b[-1:] != []) for a, b in zip(given, wanted, strict=True)]


def _numbers(text: str) -> list[float]:
    """Every number that follows `####`."""
    found = re.findall(r"####\s*\$?(-?\d[\d,]*(?:\.\d+)?)", text)
    return [float(number.replace(",", "")) for number in found]
