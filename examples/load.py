"""Load an adapter the kit trained and ask it something.

Needs nothing of the kit:

    pip install torch transformers peft accelerate
    python examples/load.py --adapter runs/mine/adapter --question "What is 17 + 25?"
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from prompts import Prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--base", default="Qwen/Qwen2.5-0.5B-Instruct")
parser.add_argument("--adapter", default="runs/qwen2.5-0.5b-instruct-pspo/adapter")
parser.add_argument("--question", default="Ann has 12 apples and eats 5. How many are left?")
args = parser.parse_args()

settings_file = Path(args.adapter, "adapter_config.json")
if settings_file.is_file():
    learned_on = json.loads(settings_file.read_text())["base_model_name_or_path"]
    if learned_on in ("embedded", "embedded-sums") and not Path(args.base).is_dir():
        path = f"from kit.config import EMBEDDED_PATHS; print(EMBEDDED_PATHS['{learned_on}'])"
        sys.exit(f'error: this adapter\'s base comes with the kit: --base "$(python -c "{path}")"')
elif args.adapter.count("/") != 1:  # else it may be one of the hub, owner/name
    sys.exit(f"error: there is no adapter in {args.adapter}; name one with --adapter RUN/adapter")

# ten lines: the adapter learned under this system message, so it is asked under it too
system = "Solve the problem step by step, then give the final answer as '#### <number>'."
messages = [{"role": "system", "content": system}, {"role": "user", "content": args.question}]
tokenizer = AutoTokenizer.from_pretrained(args.adapter)  # with the template it learned with
base = AutoModelForCausalLM.from_pretrained(args.base, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, args.adapter)
prompts = Prompts(tokenizer)  # for which a question is text, even where it spells <|im_end|>
ids = torch.tensor([prompts.chat_ids(messages)], device=model.device)
# Qwen2.5's own settings punish repetition, which a sum step by step must do; a base that was not
# tuned for chat does not know the end of a turn
settings = {
    "repetition_penalty": 1.0,
    "eos_token_id": prompts.ends(base.generation_config.eos_token_id),
}
output = model.generate(ids, max_new_tokens=512, do_sample=False, **settings)
print(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
