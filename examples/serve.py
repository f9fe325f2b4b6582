"""Merge an adapter the kit trained into its base and serve it with an OpenAI-compatible API.

    pip install torch transformers peft accelerate "transformers[serving]"
    python examples/serve.py --adapter runs/mine/adapter --out merged --port 8000

Then any OpenAI client can ask `http://localhost:8000/v1` for the model "merged" (the folder as it
was given to --out). `transformers serve` handles one request at a time; vLLM serves many, and
needs no merge (`--generation-config vllm` leaves Qwen2.5's repetition penalty aside):

    pip install vllm
    vllm serve Qwen/Qwen2.5-0.5B-Instruct --enable-lora --max-lora-rank 32 \\
      --generation-config vllm --lora-modules mine=runs/mine/adapter
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from peft import PeftModel
from prompts import Prompts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--base", default="Qwen/Qwen2.5-0.5B-Instruct")
parser.add_argument("--adapter", default="runs/qwen2.5-0.5b-instruct-pspo/adapter")
parser.add_argument("--out", default="merged", help="folder for the merged model")
parser.add_argument("--port", default="8000")
args = parser.parse_args()

if Path(args.out).exists():
    print(f"serving {args.out} as it is; delete it to merge again")
else:
    partial = f"{args.out}.partial"  # so that an interrupted merge is not served next time
    tokenizer = AutoTokenizer.from_pretrained(args.adapter)  # with the template it learned with
    # added up in float32 and rounded once, to what the base is stored in; 4-bit weights would
    # swallow most of an adapter
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, args.adapter).merge_and_unload()
    # Qwen2.5's own settings punish repetition, which a sum step by step must do
    merged.generation_config.repetition_penalty = 1.0
    # a base that was not tuned for chat names its end of text alone, and adapters end a turn
    ends = merged.generation_config.eos_token_id
    merged.generation_config.eos_token_id = Prompts(tokenizer).ends(ends)
    merged.to(AutoConfig.from_pretrained(args.base).dtype).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    Path(partial).rename(args.out)

serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", args.out]
os.execv(sys.executable, [*serve, "--port", args.port])
