"""`kit verify`: does a saved adapter compute, for others and without this kit, what it did here?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tabulate import tabulate
from torch import Tensor
from transformers import BitsAndBytesConfig

from kit.adapters import fresh_process
from kit.adapters.locate import adapter_folder
from kit.adapters.probe import Probe, probe_settings, read_probe
from kit.model import prompts
from kit.model.adapter_files import (
    ADAPTER_FILES,
    CARD,
    CHAT_TEMPLATE,
    adapter_sha256,
    read_adapter_config,
)
from kit.model.base import NF4
from kit.model.base_files import BaseSource, base_of
from kit.reading import parse_json

# largest difference allowed on other machines and versions, as a share of the largest logit
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
NOTHING_STORED = "nothing was stored to compare with: the adapter was not saved by this kit"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Computed:
    """What the fresh process found: logits (N, P, V), and a report on itself."""

    adapter: Tensor
    base: Tensor
    report: dict[str, Any]


def verify(adapter: str) -> list[Check]:
    """Check an adapter (run, folder or hub id); loads it in a process of its own.

    Raises AdapterError when there is none, or one that is refused (pickled, broken).
    """
    folder = adapter_folder(adapter)
    base, probe = base_of(str(folder)), read_probe(folder)
    where = "" if Path(adapter).is_dir() else "; others on the hub were not downloaded"
    checks = [_files(folder, where), _hash(folder, probe), _revision(base)]
    computed = _compute(folder, base, probe)
    if isinstance(computed, str):
        return [*checks, Check("loads with transformers and peft alone", False, computed)]
    modules = computed.report["kit_modules"]
    detail = f"but imported {', '.join(modules)}" if modules else "in a fresh process"
    checks.append(Check("loads with transformers and peft alone", not modules, detail))
    return checks + list(_comparisons(probe, computed))


def table(checks: list[Check]) -> str:
    rows = [("pass" if check.passed else "FAIL", check.name, check.detail) for check in checks]
    return tabulate(rows, headers=("", "check", "what was found"), maxcolwidths=[None, None, 72])


def _files(folder: Path, where: str = "") -> Check:
    names = {path.name for path in folder.iterdir()}
    faults = [f"{name} is pickled or foreign" for name in sorted(names - {*ADAPTER_FILES})]
    faults += [f"no {name}" for name in (CARD, "tokenizer_config.json") if name not in names]
    try:
        has_template = CHAT_TEMPLATE in names or "chat_template" in _tokenizer_settings(folder)
        faults += [] if has_template else ["no chat template"]
    except (OSError, ValueError):
        faults.append("tokenizer_config.json is not valid JSON")
    targets = read_adapter_config(str(folder)).get("target_modules")
    if not isinstance(targets, list):
        faults.append(f"target_modules is {targets!r}, not a list of names")
    return Check("files", not faults, "; ".join(faults) or f"{len(names)} files, no pickles{where}")


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    settings = parse_json(path.read_bytes()) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError("not an object")
    return settings


def _hash(folder: Path, probe: Probe | None) -> Check:
    now = adapter_sha256(str(folder))
    if probe is None:
        return Check("hash", False, f"{now[:16]}…; {NOTHING_STORED}")
    stored = probe.settings["adapter_sha256"]
    detail = f"{now[:16]}…" + ("" if now == stored else f", but {stored[:16]}… was saved")
    return Check("hash", now == stored, detail)


def _revision(base: BaseSource) -> Check:
    name = f"revision of the base {base.id}"
    if not base.is_on_hub:
        return Check(name, True, "none: a folder; its logits are compared instead")
    if base.revision is None:
        return Check(name, False, "none is named: the hub's default branch may move on")
    return Check(name, base.is_pinned, base.revision + ("" if base.is_pinned else " can move on"))


def _compute(folder: Path, base: BaseSource, probe: Probe | None) -> Computed | str:
    """Run kit.adapters.fresh_process on the adapter; a string says why it failed."""
    settings = probe.settings if probe else _default_settings()
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "logits.safetensors"
        request = {
            "adapter": str(folder.resolve()),
            "base": base.source,
            "revision": base.revision,
            "settings": settings,
            "ids": probe.ids if probe else None,
            "prompts": str(Path(prompts.__file__).resolve()),
            "output": str(output),
        }
        done = subprocess.run(
            [sys.executable, str(Path(fresh_process.__file__).resolve())],
            input=json.dumps(request),
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            return _reason(done.stderr) or f"exit status {done.returncode}"
        with safe_open(output, framework="pt") as file:
            report = json.loads(file.metadata()["report"])
            return Computed(file.get_tensor("adapter"), file.get_tensor("base"), report)


def _reason(stderr: str) -> str:
    """The line of a traceback that names the error, or the last one."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (named or lines or [""])[-1]


def _default_settings() -> dict[str, Any]:
    """For an adapter without a probe: 4 bits, as the kit trains by default."""
    return probe_settings(
        dtype="float32",
        attention="sdpa",
        quantization=BitsAndBytesConfig(**NF4).to_dict(),
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
    )


def _comparisons(probe: Probe | None, computed: Computed) -> Iterator[Check]:
    if probe is not None:
        same = computed.report["token_ids"] == probe.ids
        detail = "make the same tokens of the prompts" if same else "make other tokens than then"
        yield Check("tokenizer and chat template", same, detail)
        allowed, why = _tolerance(probe, computed.report)
        for name, stored, full in (
            ("logits of the base", probe.base, computed.base),
            ("logits of the adapter", probe.adapter, computed.adapter),
        ):
            positions, vocabulary = full.shape[:-1], full.shape[-1]
            if probe.top.shape[:-1] != positions or probe.top.max() >= vocabulary:
                yield Check(
                    name, False, "those stored are of other positions or another vocabulary"
                )
                continue
            far = _largest_difference(stored, full.gather(-1, probe.top))
            detail = f"differ by {far:.2g} at most; allowed: {allowed:.2g} ({why})"
            yield Check(name, far <= allowed, detail)
    else:
        yield Check("logits", False, NOTHING_STORED)
    far = _largest_difference(computed.adapter, computed.base)
    detail = f"moves the logits by up to {far:.2g}" if far else "computes what the base computes"
    yield Check("differs from the base", far > 0, detail)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    """NaN, which passes no check, where either is."""
    return (a - b).abs().max().item()


def _tolerance(probe: Probe, report: dict[str, Any]) -> tuple[float, str]:
    """How far logits may be from the stored ones here, and why."""
    facts = ("versions", "device", "processor", "threads")
    changed = [fact for fact in facts if report[fact] != probe.settings[fact]]
    if not changed and report["device"] == "cpu":
        return 0.0, "the same versions on the same kind of machine"
    dtype = probe.settings["dtype"]
    share = TOLERANCE[dtype]
    why = f"other {', '.join(changed)}" if changed else "a GPU"
    return share * probe.adapter.abs().max().item(), f"{why}; {share:g} of the largest, in {dtype}"
