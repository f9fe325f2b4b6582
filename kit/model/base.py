"""Load the base model, quantized, with its tokenizer and stop tokens."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import HFValidationError
from peft import import_utils
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from kit.config import ModelConfig
from kit.errors import ModelError, first_line, is_out_of_memory
from kit.model.attention import suits, use_grouped
from kit.model.finite import watched
from kit.model.graphs import Replay
from kit.model.hardware import MAKE_ROOM, Hardware, choose_hardware, no_room
from kit.model.tokenizer import end_of_turn, prepare_tokenizer, prompt_ids, stop_ids
from kit.model.unsloth import Unsloth, check_unpatched, load_unsloth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NF4: dict[str, Any] = {  # 4-bit NormalFloat with double quantization, for BitsAndBytesConfig
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


@dataclass(frozen=True)
class Base:
    """A frozen base model and what belongs to it."""

    id: str
    revision: str | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    end_id: int  # ends an assistant's turn; what supervised completions are closed with
    hardware: Hardware
    unsloth: Unsloth | None = None  # None: the transformers backend
    replay: Replay = field(default_factory=Replay, compare=False)

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a chat prompt, up to where the assistant's answer begins."""
        return prompt_ids(self.tokenizer, messages)


def load_base(config: ModelConfig, device: torch.device | None = None) -> Base:
    """Load a causal language model, frozen, in the precision the configuration names.

    Raises ModelError when the id or folder cannot be reached, the model is not supported, or does
    not fit into memory.
    """
    hardware = choose_hardware(config, device)
    source = config.source
    if config.path not in (None, source):
        log.warning("no folder %s here: loading %s instead of that copy", config.path, config.id)
    quantization = _quantization(config, hardware)
    if quantization is None:
        check_torchao()
    with _explained(config.id):
        settings = AutoConfig.from_pretrained(source, revision=config.revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
        # a checkpoint's own note of an earlier quantization would override ours
        if getattr(settings, "quantization_config", None) is not None:
            raise ModelError(
                f"{config.id} is already quantized; give the id of its full-precision weights"
            )
        model, unsloth, hardware = _load_model(config, settings, quantization, hardware)
    model.requires_grad_(False)
    model.eval()
    use_exact_kernels(model)  # before anything is computed
    try:
        _check_supported(model, config.id)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise no_room(config.id, error) from error
    prepare_tokenizer(tokenizer, config.id)
    _switch_off_dropout(model)
    return Base(
        id=config.id,
        # the commit that a branch or tag stands for now
        revision=getattr(settings, "_commit_hash", None) or config.revision,
        model=model,
        tokenizer=tokenizer,
        stop_ids=stop_ids(tokenizer, getattr(model.generation_config, "eos_token_id", None)),
        end_id=end_of_turn(tokenizer),
        hardware=hardware,
        unsloth=unsloth,
        replay=Replay("8-bit layers wait for the host" if config.quantization == "int8" else ""),
    )


def _load_model(
    config: ModelConfig,
    settings: PreTrainedConfig,
    quantization: BitsAndBytesConfig | None,
    hardware: Hardware,
) -> tuple[PreTrainedModel, Unsloth | None, Hardware]:
    """The model, what Unsloth brings where it is of Unsloth, and the hardware as it is used."""
    if hardware.backend == "unsloth":
        try:
            loaded = load_unsloth(config, config.source, settings, quantization, hardware)
            return *loaded, hardware
        except ModelError as error:
            if config.backend == "unsloth":
                raise
            log.warning("using transformers instead of unsloth: %s", error)
            hardware = hardware.without_unsloth(str(error))
    model = AutoModelForCausalLM.from_pretrained(
        config.source,
        revision=config.revision,
        dtype=hardware.dtype,
        attn_implementation=hardware.attention,
        quantization_config=quantization,
        device_map={"": hardware.device},
        low_cpu_mem_usage=True,
    )
    check_unpatched(model)
    if config.attention == "auto" and suits(settings):
        use_grouped(model)
        hardware = hardware.grouped()
    return model, None, hardware


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """ModelError, with what to do, for what libraries raise while they load a base."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, HFValidationError, ValueError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise no_room(name, error) from error
        if "automatic conversion of the weights" in str(error):  # no more than that is in it
            raise ModelError(
                f"cannot load the base model {name!r}: its weights could not be put in place "
                f"(the report above says why); if memory ran out, {MAKE_ROOM}"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise ModelError(
            f"cannot load the base model {name!r}: {first_line(error)} "
            "Check the id, the network and (for gated models) your hub login, or give a folder."
        ) from error


def check_torchao() -> None:
    """ModelError for a torchao that PEFT refuses to put LoRA beside, though nothing here uses it.

    Only layers that are not quantized make PEFT look.
    """
    try:
        import_utils.is_torchao_available()
    except ImportError as error:
        raise ModelError(
            f"{first_line(error)}; update it (pip install -U torchao) or uninstall it"
        ) from error


def _quantization(config: ModelConfig, hardware: Hardware) -> BitsAndBytesConfig | None:
    if config.quantization == "nf4":
        return BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=hardware.dtype)
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def use_exact_kernels(model: torch.nn.Module) -> None:
    """Keep 4-bit layers on the CPU from switching to bfloat16 kernels outside training.

    On processors with AVX512-BF16 bitsandbytes would repack the weights at the first evaluation,
    for good: the sampler would no longer compute the probabilities the trainer differentiates, and
    the repacked layers carry no gradient. To be called before the model computes anything.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _switch_off_dropout(model: torch.nn.Module) -> None:
    """GPT-2 and its like drop a tenth in training mode, which checkpointed gradients need: what is
    differentiated would not be the policy that sampled.
    """
    names = ("attention_dropout", "activation_dropout", "dropout", "layerdrop")  # plain numbers
    module: Any
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in names:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _check_supported(model: PreTrainedModel, name: str) -> None:
    """Log-probabilities are computed from hidden states and the head's weight alone."""
    head = model.get_output_embeddings()
    if head is None or head.weight.ndim != 2 or not head.weight.dtype.is_floating_point:
        raise ModelError(f"{name} has no dense output head; causal language models only")
    with torch.no_grad():
        ids = torch.arange(1, 9, device=head.weight.device)[None] % model.config.vocab_size
        hidden = getattr(model, model.base_model_prefix)(ids).last_hidden_state
        close = 1e-3 if model.dtype == torch.float32 else 1e-2
        logits = model(ids).logits.float()
        if not logits.isfinite().all():
            with watched(model) as found:
                model(ids)
            raise ModelError(
                f"{name} computes NaN or infinite numbers: {(*found, 'its logits')[0]}; download "
                "it anew, or try model.dtype=float32"
            )
        same = torch.allclose(head(hidden).float(), logits, atol=close, rtol=close)
    if not same:
        raise ModelError(
            f"{name} scales or caps its logits after the output head, which is not supported"
        )
