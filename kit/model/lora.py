"""Put LoRA on a base: a fresh adapter to train, or saved ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, PeftModelForCausalLM, get_peft_model

from kit.config import LoraConfig
from kit.errors import AdapterError
from kit.model.adapter_files import (
    PLAIN,
    WEIGHTS,
    adapted_modules,
    check_leaves_base,
    check_unchanged,
    checked_files,
    is_expression,
    read_adapter_config,
)
from kit.model.base import Base
from kit.model.rollback import rolled_back

TRAINED = "default"  # PEFT saves the adapter of this name at the top of the folder


REFERENCE = "reference"
LARGEST_WEIGHT = 1e6  # whose products with activations are finite; trained ones are around 1


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
        # in a batch, NaN of one adapter would reach the rows of all, and so would 0 times infinity
        if f".{name}." in key and not (weight.abs() < LARGEST_WEIGHT).all():
            raise ValueError(f"{key} is not finite, or has weights of {LARGEST_WEIGHT:g} and more")


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
    on_cpu = base.hardware.device.type == "cpu"
    if settings.get("use_dora") and on_cpu and getattr(base.model, "is_loaded_in_8bit", False):
        raise AdapterError(
            f"the adapter {source} is DoRA, which PEFT cannot compute beside weights in int8 on a "
            "CPU; set model.quantization to nf4 or none, or use a GPU"
        )
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
