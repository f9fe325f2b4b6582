"""Load the base model, quantized, with its tokenizer and stop tokens, and put LoRA on it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, PeftModelForCausalLM, get_peft_model, import_utils
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from kit.adapters import (
    PLAIN,
    WEIGHTS,
    adapted_modules,
    check_leaves_base,
    check_unchanged,
    checked_files,
    is_expression,
    read_adapter_config,
)
from kit.backends import Unsloth, check_unpatched, load_unsloth
from kit.config import LoraConfig, ModelConfig
from kit.errors import (
    AdapterError,
    ModelError,
    OutOfMemoryError,
    first_line,
    is_out_of_memory,
    room_for,
)
from kit.finite import watched
from kit.hardware import Hardware, choose_hardware, empty_cache, free_memory
from kit.rollback import rolled_back
from kit.tokenizer import end_of_turn, prepare_tokenizer, prompt_ids, stop_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NF4: dict[str, Any] = {  # 4-bit NormalFloat with double quantization, for BitsAndBytesConfig
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
TRAINED = "default"  # PEFT saves the adapter of this name at the top of the folder
REFERENCE = "reference"


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
    unsloth = None
    try:
        settings = AutoConfig.from_pretrained(source, revision=config.revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
        # a checkpoint's own note of an earlier quantization would override ours
        if getattr(settings, "quantization_config", None) is not None:
            raise ModelError(
                f"{config.id} is already quantized; give the id of its full-precision weights"
            )
        if hardware.backend == "unsloth":
            try:
                model, unsloth = load_unsloth(config, source, settings, quantization, hardware)
            except ModelError as error:
                if config.backend == "unsloth":
                    raise
                log.warning("using transformers instead of unsloth: %s", error)
                hardware = hardware.without_unsloth(str(error))
        if unsloth is None:
            model = AutoModelForCausalLM.from_pretrained(
                source,
                revision=config.revision,
                dtype=hardware.dtype,
                attn_implementation=hardware.attention,
                quantization_config=quantization,
                device_map={"": hardware.device},
                low_cpu_mem_usage=True,
            )
            check_unpatched(model)
    except ModelError:
        raise
    except (OSError, HFValidationError, ValueError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _no_room(config.id, error) from error
        if isinstance(error, RuntimeError):
            raise
        reason = first_line(error)
        raise ModelError(
            f"cannot load the base model {config.id!r}: {reason} "
            "Check the id, the network and (for gated models) your hub login, or give a folder."
        ) from error
    model.requires_grad_(False)
    model.eval()
    use_exact_kernels(model)  # before anything is computed
    try:
        _check_supported(model, config.id)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _no_room(config.id, error) from error
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
    )


def _no_room(name: str, error: Exception) -> ModelError:
    where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
    return ModelError(
        f"not enough {where} memory to load {name!r}; end what else uses the {where}, take a "
        "smaller model, or model.quantization=nf4 (`kit estimate` says what fits)"
    )


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


def add_lora(
    base: Base,
    config: LoraConfig,
    seed: int,
    adapter: str | None = None,
    *,
    name: str = TRAINED,
    model: PeftModel | None = None,
) -> PeftModel:
    """Put a trainable float32 LoRA adapter on the base, fresh or continued from `adapter`.

    A continued adapter is loaded twice: once to train and once, frozen, as the reference.
    With `model` (the base that has adapters already) this adds another one, called `name`; all
    that are continued share one reference, so they must continue the same `adapter`.
    Raises AdapterError when `adapter` is missing, of another base or of another shape.
    """
    torch.manual_seed(seed)  # LoRA's A matrices are drawn from the global generator
    if adapter is None:
        model = _fresh_lora(base, config, seed, name, model)
    else:
        _check_same_lora(read_adapter_config(adapter), config, adapter)
        has_reference = model is not None and REFERENCE in model.peft_config
        wanted = {name: adapter} if has_reference else {name: adapter, REFERENCE: adapter}
        is_first = model is None
        model = load_adapters(base, wanted, model)
        if base.unsloth is not None and is_first:
            base.unsloth.patch_lora(model)
    model.set_adapter(name)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise AdapterError("no weight would be trained; check lora.targets")
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return model


def load_adapters(base: Base, adapters: dict[str, str], onto: PeftModel | None = None) -> PeftModel:
    """Load LoRA adapters {name: folder or hub id} onto one base, frozen.

    `onto` is that base with the adapters it has already. When one of them cannot be loaded, or
    loading is interrupted, model and base are as they were before.

    Raises AdapterError for a missing or unsafe file or an adapter of another base.
    """
    model: Any = onto
    # all of them, before any changes the base
    checked = {name: check_adapter(base, source) for name, source in adapters.items()}
    with rolled_back(base.model if onto is None else onto):
        for name, (settings, weights) in checked.items():
            try:
                if model is None:
                    model = PeftModelForCausalLM(base.model, settings, adapter_name=name)
                else:
                    model.add_adapter(name, settings)
                _check_loaded(model, name, model.load_adapter(str(weights.parent), name))
            except Exception as error:  # whatever PEFT or torch makes of a stranger's files
                said = isinstance(error, OSError | RuntimeError | ValueError)
                reason = " ".join((str(error) if said else repr(error)).split())[:300]
                raise AdapterError(f"cannot load the adapter {adapters[name]}: {reason}") from error
    model.eval()
    return model


def _check_loaded(model: PeftModel, name: str, result: Any) -> None:
    """ValueError unless all weights of an adapter are there, no others, and finite."""
    if missing := result.missing_keys:
        raise ValueError(f"{WEIGHTS} lacks {len(missing)} of its weights, e.g. {missing[0]}")
    if unexpected := result.unexpected_keys:
        raise ValueError(
            f"{len(unexpected)} weights are not in its configuration, e.g. {unexpected[0]}"
        )
    for key, weight in model.named_parameters():
        # in a batch, NaN of one adapter would reach the rows of all
        if f".{name}." in key and not weight.isfinite().all():
            raise ValueError(f"{key} is not finite")


def check_adapter(base: Base, source: str) -> tuple[PeftLoraConfig, Path]:
    """Settings and weights of a safetensors LoRA adapter of this base, which it leaves as it is.

    Raises AdapterError for any other.
    """
    settings, weights = checked_files(source)
    trained_on = settings.get("base_model_name_or_path")
    if trained_on not in (base.id, str(Path(base.id))):
        raise AdapterError(
            f"adapter {source} was trained on {trained_on} but the loaded base is {base.id}; "
            f"load it with model.id={trained_on}"
        )
    check_leaves_base(source, settings)
    _check_plain(source, settings)
    modules = adapted_modules(source, settings, weights)
    heads = [n for n, m in base.model.named_modules() if m is base.model.get_output_embeddings()]
    if changed := modules & set(heads):
        raise AdapterError(
            f"the adapter {source} changes the output head ({', '.join(changed)}), whose weight "
            "the kit computes log-probabilities from; train it without"
        )
    check_unchanged(source)
    return _peft_settings(settings, modules), weights


def _check_plain(source: str, settings: dict[str, Any]) -> None:
    """AdapterError for what PEFT can do beyond LoRA on modules, all of which needs other care."""
    defaults = PeftLoraConfig().to_dict()
    special = [
        f"{key}={settings[key]!r}"
        for key, default in defaults.items()
        if key not in PLAIN and settings.get(key) and settings[key] != default
    ]
    if special:
        raise AdapterError(
            f"the adapter {source} is more than LoRA ({', '.join(special)[:200]}), which the kit "
            "does not load; convert it to a plain LoRA adapter"
        )


def _peft_settings(settings: dict[str, Any], modules: set[str]) -> PeftLoraConfig:
    """PEFT's own record of checked settings, for an adapter that has weights for `modules`.

    A regular expression of a stranger may take for ever, so the modules it chose stand in for it.
    """
    found = cast(PeftLoraConfig, PeftLoraConfig.from_peft_type(**settings))
    found.inference_mode = True
    if is_expression(found.target_modules) or is_expression(found.exclude_modules):
        found.target_modules, found.exclude_modules = sorted(modules), None
        found.layers_to_transform = found.layers_pattern = None
    return found


@contextmanager
def dequantized(model: torch.nn.Module, mode: str, hardware: Hardware) -> Iterator[bool]:
    """Hold the 4-bit weights in compute precision while inside: same numbers, faster decoding.

    A 4-bit layer unpacks its weight on every call, which for one-token decoding costs more than
    the product itself. `mode` is RolloutConfig.dequantize; with `auto` this happens only when the
    copy takes less than a third of the free memory. Yields whether it was done.

    Raises OutOfMemoryError when the copy does not fit after all and `mode` is `always`.
    """
    import bitsandbytes as bnb

    layers: list[Any] = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    size = sum(m.weight.quant_state.shape.numel() for m in layers) * hardware.dtype.itemsize
    done = bool(layers) and (
        mode == "always" or (mode == "auto" and size < free_memory(hardware.device) / 3)
    )
    try:
        if done:
            with room_for("unpacking the 4-bit weights", "set rollout.dequantize=never"):
                for layer in layers:
                    weight = layer.weight
                    dense = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
                    layer.forward = partial(_dense_forward, dense.to(hardware.dtype), layer.bias)
    except OutOfMemoryError as error:
        _pack(layers)
        empty_cache(hardware.device)
        if mode == "always":
            raise
        log.warning("decoding from packed weights, which is slower: %s", error)
        done = False
    try:
        yield done
    finally:
        _pack(layers)


def _pack(layers: Sequence[torch.nn.Module]) -> None:
    """Let 4-bit layers unpack their weights on every call again."""
    for layer in layers:
        vars(layer).pop("forward", None)


def _dense_forward(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor):
    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


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


def _fresh_lora(
    base: Base, config: LoraConfig, seed: int, name: str, model: PeftModel | None
) -> PeftModel:
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT computes with any number
        target_modules=config.targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        if model is None and base.unsloth is not None and name == TRAINED:
            model = base.unsloth.fresh_lora(base.model, config, seed)
        elif model is None:
            model = cast(PeftModel, get_peft_model(base.model, settings, adapter_name=name))
        else:
            model.add_adapter(name, settings)
    except ValueError as error:
        if model is None:
            vars(base.model).pop("peft_config", None)  # PEFT leaves it behind
        raise AdapterError(f"lora.targets={config.targets!r}: {error}") from error
    # the saved adapter names its base as the user did, and the exact revision
    model.peft_config[name].base_model_name_or_path = base.id
    model.peft_config[name].revision = base.revision
    return model


def _check_same_lora(settings: dict[str, Any], config: LoraConfig, source: str) -> None:
    for key, got, wanted in (
        ("rank", settings["r"], config.rank),
        ("alpha", float(settings["lora_alpha"]), config.alpha),
    ):
        if got != wanted:
            raise AdapterError(
                f"adapter {source} has {key} {got:g} but lora.{key} is {wanted:g}; "
                f"set lora.{key}={got:g}"
            )
