"""A program of its own: what an adapter computes with transformers and peft, and nothing else.

`kit verify` runs this file by its path in a new process: it must not import the kit. It reads a
JSON request from standard input (with the path of kit.model.prompts, which stands alone) and writes
logits (N, P, V) with and without the adapter, at the last P positions of N prompts, to a
safetensors file whose metadata holds the report.
"""

import json
import platform
import runpy
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# a program's folder comes first on the path, and the kit's modules must not stand in for others
HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]

import torch  # noqa: E402

COMPUTE = "bnb_4bit_compute_dtype"  # of 4-bit layers; int8 ones have none and leave it aside
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def last_logits(model: Any, ids: list[int], positions: int) -> torch.Tensor:
    """(P, V) float32 on the CPU: the logits after each of the last P tokens of one prompt."""
    inputs = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=inputs, use_cache=False, logits_to_keep=positions).logits
    return logits[0].float().cpu()


def surroundings(device: torch.device) -> dict[str, Any]:
    """What decides the last bits of a result: versions, processor, threads."""
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "device": device.type,
        "processor": _processor(device),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    request = json.load(sys.stdin)
    settings = request["settings"]
    torch.set_num_threads(settings["threads"])
    has_gpu = settings["device"] == "cuda" and torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    model, tokenizer = _load(request, settings, device)
    prompts = runpy.run_path(request["prompts"])["Prompts"](tokenizer)
    chats = [[{"role": "user", "content": question}] for question in settings["questions"]]
    token_ids = [prompts.chat_ids(chat) for chat in chats]
    ids = request["ids"] or token_ids
    logits = {"adapter": _stacked(model, ids, settings["positions"])}
    with model.disable_adapter():
        logits["base"] = _stacked(model, ids, settings["positions"])
    report = surroundings(device) | {
        "token_ids": token_ids,
        "kit_modules": [name for name in sys.modules if name.split(".")[0] == "kit"],
    }

    from safetensors.torch import save_file

    save_file(logits, request["output"], metadata={"report": json.dumps(report)})


def _load(request: dict[str, Any], settings: dict[str, Any], device: torch.device) -> tuple:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    # what a GPU computed in 16 bits is compared with the exact values where there is none
    dtype = settings["dtype"] if device.type == settings["device"] else "float32"
    quantization = settings["quantization"]
    if quantization:
        quantization = BitsAndBytesConfig.from_dict(quantization | {COMPUTE: dtype})
    model: Any = AutoModelForCausalLM.from_pretrained(
        request["base"],
        revision=request["revision"],
        dtype=dtype,
        attn_implementation=settings["attention"],
        quantization_config=quantization,
        device_map={"": device},
    )
    model = PeftModel.from_pretrained(model, request["adapter"]).eval()
    for module in model.modules():
        # bitsandbytes would switch to bfloat16 kernels on some processors, outside training only
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, AutoTokenizer.from_pretrained(request["adapter"])


def _stacked(model: Any, ids: list[list[int]], positions: int) -> torch.Tensor:
    return torch.stack([last_logits(model, row, positions) for row in ids])


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor()}, {kernels}"


if __name__ == "__main__":
    main()
