"""Load and drive the model through Unsloth: its kernels, LoRA, checkpointing and fast inference.

The rest of the kit sees an ordinary model. Where Unsloth computes in another way than transformers,
the difference is bridged here, and `_deviation` measures at every start whether that worked.
Written against unsloth 2026.10.9; docs/unsloth.md says what was seen running and what was not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftModelForCausalLM
from torch import Tensor
from transformers import DynamicCache

from kit.config import LoraConfig, ModelConfig
from kit.errors import ModelError, first_line, is_out_of_memory
from kit.model.batching import pad_right
from kit.model.hardware import Hardware, no_room

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

FAMILIES = ("llama", "qwen2", "qwen3")  # the others go through a compiler of Unsloth's
# the decoding state Unsloth keeps on every attention layer
DECODE_BUFFERS = (
    *("paged_attention", "paged_attention_K", "paged_attention_V"),
    *("temp_QA", "temp_KV", "temp_O", "RH_Q", "attention"),
)
# what a package raises that patches several others when one of them is not as it expects
LOAD_ERRORS = (
    *(ImportError, NotImplementedError, OSError, RuntimeError),
    *(ValueError, TypeError, AttributeError, KeyError, AssertionError),
)
# total variation between the sampler's and the trainer's next-token distribution
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
PROMPTS = ((35, 71, 64, 51, 75), (89, 22, 66))  # any tokens; two lengths, so that one is padded
NEXT = ((55, 88), (33, 57))


@dataclass(frozen=True, slots=True)
class Unsloth:
    """The package, as one loaded base uses it."""

    fast: Any  # unsloth.FastLanguageModel
    version: str
    checkpointing: Literal["unsloth", False]

    def fresh_lora(self, model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
        """A new adapter, called "default", with Unsloth's LoRA kernels."""
        return self.fast.get_peft_model(
            model,
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=config.targets,
            lora_dropout=0.0,
            bias="none",
            use_gradient_checkpointing=self.checkpointing,
            random_state=seed,
        )

    def patch_lora(self, model: PeftModel) -> None:
        """Put Unsloth's LoRA kernels on a model whose adapters PEFT has loaded."""
        self.fast.patch_peft_model(model, use_gradient_checkpointing=self.checkpointing)

    @contextmanager
    def inference(self, model: PeftModel | PreTrainedModel) -> Iterator[None]:
        """Unsloth's fast inference, inside; afterwards training, without the decoding buffers."""
        self.fast.for_inference(model)
        try:
            yield
        finally:
            free_decode_buffers(model)
            self.fast.for_training(model, use_gradient_checkpointing=self.checkpointing)


def load_unsloth(
    config: ModelConfig,
    source: str,
    settings: PretrainedConfig,
    quantization: BitsAndBytesConfig | None,
    hardware: Hardware,
) -> tuple[PreTrainedModel, Unsloth]:
    """Load the model, in the very layout the transformers backend gives it.

    Raises ModelError when Unsloth cannot load it or computes something else than it should; the
    classes of transformers and PEFT are then what they were before.
    """
    if settings.model_type not in FAMILIES:
        raise ModelError(
            f"the unsloth backend runs {', '.join(FAMILIES)} models, "
            f"{config.id} is a {settings.model_type} model; set model.backend=transformers"
        )
    checkpointing: Literal["unsloth", False] = (
        "unsloth" if config.gradient_checkpointing is True else False
    )
    with _undone_on_failure(settings.model_type):
        try:
            fast, version = _import_unsloth()
            model, _ = fast.from_pretrained(  # the kit has a tokenizer of its own, unpatched
                model_name=source,
                revision=config.revision,
                # more would rescale the positions, less would cut rows off
                max_seq_length=settings.max_position_embeddings,
                dtype=hardware.dtype,
                load_in_4bit=quantization is not None,
                quantization_config=quantization,
                device_map={"": hardware.device},
                use_exact_model_name=True,  # not a copy quantized by others
                offload_embedding=False,  # log-probs read the head's weight
                fast_inference=False,  # that would be vLLM
                fix_tokenizer=False,
                use_gradient_checkpointing=checkpointing,
            )
            keep_cache(model)
            deviation = _deviation(model)
        except LOAD_ERRORS as error:
            if is_out_of_memory(error):
                raise no_room(config.id, error) from error
            reason = first_line(error)
            raise ModelError(
                f"unsloth cannot run {config.id!r}: {reason}; set model.backend=transformers"
            ) from error
        allowed = ALLOWED[hardware.dtype]
        if not deviation < allowed:  # NaN is refused too
            raise ModelError(
                f"unsloth {version} samples {config.id} from other probabilities than it trains "
                f"(total variation {deviation:.2g}, allowed {allowed:g}); "
                "set model.backend=transformers"
            )
    return model, Unsloth(fast, version, checkpointing)


def check_unpatched(model: PreTrainedModel) -> None:
    """ModelError when transformers' classes compute with Unsloth's kernels in this process."""
    if type(model).forward.__module__.partition(".")[0] == "unsloth":
        raise ModelError(
            "Unsloth has loaded a model in this process and replaced parts of transformers; load "
            "a model with model.backend=transformers in a process of its own"
        )


@contextmanager
def _undone_on_failure(family: str) -> Iterator[None]:
    """Unsloth replaces methods of transformers' and PEFT's classes: put them back on an error."""
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    classes = [c for c in vars(module).values() if getattr(c, "__module__", "") == module.__name__]
    owners = [module, PeftModelForCausalLM, *(c for c in classes if isinstance(c, type))]
    before = [dict(vars(owner)) for owner in owners]
    try:
        yield
    except ModelError:
        for owner, names in zip(owners, before, strict=True):
            for name, value in names.items():
                if vars(owner)[name] is not value:
                    setattr(owner, name, value)
        raise


def _import_unsloth() -> tuple[Any, str]:
    # without this every load fetches a file from the hub, which counts users
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    with warnings.catch_warnings():
        # what is lost by importing it late are its versions of TRL's trainers
        warnings.filterwarnings("ignore", message=".*Unsloth should be imported before")
        import unsloth
    return unsloth.FastLanguageModel, unsloth.__version__


# --- decoding ------------------------------------------------------------------------------------


def keep_cache(model: PreTrainedModel) -> None:
    """Let decoding with a DynamicCache work as it does in transformers.

    Unsloth reads the cache it is given but returns the new one as tensors of its own, backed by
    buffers on the attention layers. These hooks bring the caller's object up to date, and drop the
    buffers when the caller has changed the rows since.
    """
    written: list[Tensor] = []  # the first layer's keys as this function left them

    def before(_model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        cache = kwargs.get("past_key_values")
        if cache is None:
            return None
        if not (written and cache.layers and cache.layers[0].keys is written[0]):
            free_decode_buffers(model)
        return args, {**kwargs, "return_dict": True}  # a decoding step returns a tuple otherwise

    def after(_model: Any, _args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs.get("past_key_values")
        if cache is None:
            return
        for i, (keys, values) in enumerate(output.past_key_values):
            if i == len(cache.layers):
                cache.update(keys, values, i)
            else:
                cache.layers[i].keys, cache.layers[i].values = keys, values
        written[:] = [cache.layers[0].keys]

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)


def free_decode_buffers(model: torch.nn.Module) -> None:
    """Forget the decoding state on the attention layers; the next step takes it from the cache."""
    for module in model.modules():
        if "paged_attention" in vars(module):
            for name in DECODE_BUFFERS:
                vars(module).pop(name, None)


# --- the check at every start --------------------------------------------------------------------


@torch.no_grad()
def _deviation(model: PreTrainedModel) -> float:
    """Largest total variation between the distributions the sampler and the trainer compute."""
    sampled = _sampled(model)
    deviations = []
    for training in (False, True):  # Unsloth masks padding in another way while training
        model.train(training)
        trained = _trained(model)
        deviations += [(trained[at] - got).abs().sum().item() / 2 for at, got in sampled.items()]
    model.eval()
    free_decode_buffers(model)
    return max(deviations)


def _trained(model: PreTrainedModel) -> Tensor:
    """Next-token probabilities (row, position, V) as Policy.logprobs computes them."""
    rows = [[*prompt, *more] for prompt, more in zip(PROMPTS, NEXT, strict=True)]
    ids, mask = pad_right(rows, 0)
    backbone = getattr(model, model.base_model_prefix)
    hidden = backbone(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).last_hidden_state
    return model.get_output_embeddings()(hidden).float().softmax(-1)


def _sampled(model: PreTrainedModel) -> dict[tuple[int, int], Tensor]:
    """The same (row, position) -> (V,) as kit.model.rollout does: padded on the left, cached, and
    with a row that leaves the batch before the last token."""
    device, cache, found = model.device, DynamicCache(), {}
    width = max(len(prompt) for prompt in PROMPTS)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in PROMPTS], device=device)
    lengths = torch.tensor([len(p) for p in PROMPTS], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rows = torch.arange(len(PROMPTS), device=device)
    for step in range(len(NEXT[0]) + 1):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        for row, probabilities in zip(rows.tolist(), logits.float().softmax(-1), strict=True):
            found[row, len(PROMPTS[row]) + step - 1] = probabilities
        if step == len(NEXT[0]):
            break
        if step == len(NEXT[0]) - 1:
            kept = torch.tensor([1], device=device)
            cache.batch_select_indices(kept)
            rows, mask = rows[kept], mask[kept]
        ids = torch.tensor([[NEXT[row][step]] for row in rows.tolist()], device=device)
        positions = mask.sum(1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return found
