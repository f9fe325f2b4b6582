"""The model card of an adapter: hub metadata, results, settings, and how to load it.

The text is `card.md.jinja`.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kit.adapters import chat_ids
from kit.adapters.probe import read_probe
from kit.config import EMBEDDED_PATHS, READERS, Config
from kit.errors import ModelError, ResultsError, RunError
from kit.evaluation.results import Result, read_result
from kit.files import write_atomically
from kit.model.adapter_files import CARD, adapter_sha256
from kit.model.base import NF4
from kit.model.base_files import BaseSource, base_of
from kit.runs import RunFolder
from kit.tasks.sources import KNOWN

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEMPLATE = Path(__file__).with_name("card.md.jinja")
SHOWN = (  # what the example sets of a quantization
    *("load_in_4bit", "load_in_8bit"),
    *("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"),
)


def write_card(run: RunFolder) -> Path:
    """Write README.md of a run's adapter, from the run's files as they are now."""
    path = run.adapter / CARD
    content = run_card(run).content
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RunError(
            f"cannot write the card {path}: {error.strerror}; once that is mended, the same "
            "command with --resume writes it"
        ) from error
    return path


def run_card(run: RunFolder, repo: str | None = None) -> ModelCard:
    """The card of a run's adapter, at home or as hub repository `repo`."""
    config, base = run.load_config(), base_of(str(run.adapter))
    name, results = repo or run.path.resolve().name, _results(run)
    learned_from = config.preferences.source or config.data.name
    hub_id, _ = _hub_data(learned_from)
    is_grpo = config.method == "grpo"
    data = _metadata(
        base,
        name,
        [config.method, *([config.objective.trust_region.name] if is_grpo else [])],
        datasets=[hub_id] if hub_id else None,
        eval_results=[entry for result in results for entry in _index_entries(result)] or None,
    )
    return _rendered(
        data,
        run.adapter,
        base,
        config.system_prompt,
        name=name,
        repo=repo,
        config=config,
        learned_from=learned_from,
        settings=yaml.safe_dump(_public_settings(config), sort_keys=False),
        facts=run.read_description(),
        results=results,
    )


def blend_card(
    folder: Path, parts: Sequence[tuple[str, float, str]], how: str, system_prompt: str, name: str
) -> ModelCard:
    """The card of a blend in `folder`; `parts` are (name, weight, hash) of the adapters in it."""
    base = base_of(str(folder))
    data = _metadata(base, name, ["merge"])
    return _rendered(data, folder, base, system_prompt, name=name, parts=parts, how=how)


def _rendered(
    data: ModelCardData, folder: Path, base: BaseSource, prompt: str, **values: Any
) -> ModelCard:
    """The template, filled in; `values` are what runs and blends do not share."""
    probe = read_probe(folder)
    system = [{"role": "system", "content": prompt}] if prompt else []
    settings: dict[str, Any] = probe.settings if probe else {"quantization": NF4, "dtype": "auto"}
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        base=base,
        is_embedded=base.id in EMBEDDED_PATHS,
        prompt=prompt,
        messages=[*system, {"role": "user", "content": "What is 17 + 25?"}],
        chat_ids=inspect.getsource(chat_ids).partition('"""\n\n')[2].rstrip("\n"),
        bits=_bits(settings["quantization"] or {}),
        probe=settings,
        public=_public,
        fenced=_fenced,
        sampling=_sampling,
        repr=repr,
        **values,
    )


def _bits(quantization: dict[str, Any]) -> str | None:
    """The Python expression of a quantization."""
    given = [f"{key}={quantization[key]!r}" for key in SHOWN if quantization.get(key)]
    return f"BitsAndBytesConfig({', '.join(given)})" if given else None


def _public_settings(config: Config) -> dict[str, Any]:
    """A run's settings without the folders of somebody's disk."""
    places: Any = {"output": True, "data": {"data_dir"}, "model": {"path"}}
    settings = config.model_dump(mode="json", exclude=places)
    names = (("model", "id"), ("model", "adapter"), ("data", "name"), ("preferences", "source"))
    for section, key in names:
        settings[section][key] = _public(settings[section][key] or "") or None
    checks = [check for each in settings["guidelines"].values() for check in each["checks"]]
    for function in (*settings["reward"]["functions"], *checks):
        if "path" in function:
            function["path"] = _public(function["path"])
    return settings


def _metadata(base: BaseSource, name: str, tags: Sequence[str], **found: Any) -> ModelCardData:
    try:
        found |= base.license()
    except ModelError as error:
        log.warning("the card does not name the base's licence: %s", error)
    if base.is_on_hub:
        found |= {"base_model": base.id, "base_model_relation": "adapter"}
    return ModelCardData(
        model_name=name,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "gr-pspo", *tags],
        **found,
    )


def _results(run: RunFolder) -> list[Result]:
    """Finished results of the adapter as it is now; others are left out, with a warning."""
    sha, found = adapter_sha256(str(run.adapter)), []
    for path in sorted((run.path / "eval").glob("*.json")):
        try:
            result = read_result(path)
        except ResultsError as error:
            log.warning("left out of the card: %s", error)
            continue
        if result.record["target"]["adapter_sha256"] != sha:
            log.warning("left out of the card: %s is of another state of the adapter", path)
        elif result.record["status"] != "finished":
            log.warning("left out of the card: %s is not finished", path)
        else:
            found.append(result)
    return found


def _index_entries(result: Result) -> Iterator[EvalResult]:
    """Entries of the hub's model-index, in %."""
    dataset, subset = _hub_data(result.data)
    for temperature in result.temperatures:
        figures = result.at(temperature)
        for kind in ("strict", "lenient"):
            yield EvalResult(
                task_type="text-generation",
                dataset_type=dataset or _public(result.data),
                dataset_name=_public(result.data),
                dataset_config=subset,
                dataset_split=result.settings["split"],
                metric_type="accuracy",
                metric_value=round(100 * figures[kind]["value"], 2),
                metric_name=f"{kind} accuracy, %, {_sampling(result, temperature)}",
            )


def _sampling(result: Result, temperature: float) -> str:
    """How the answers were sampled, in words."""
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    samples = result.at(temperature)["samples"]
    return ", ".join(
        [
            how,
            f"{result.record['n']} problems",
            *([f"{samples} samples each"] if samples > 1 else []),
            *([f"tag {result.record['tag']}"] if result.record["tag"] else []),
        ]
    )


def _hub_data(name: str) -> tuple[str | None, str | None]:
    """Hub id and configuration of a data set; (None, None) for tasks and files."""
    if name in KNOWN:
        return KNOWN[name].hub_id, KNOWN[name].hub_config
    hub_id, _, subset = name.partition(":")
    if Path(name).suffix.lower() in READERS or not HUB_ID.fullmatch(hub_id):
        return None, None
    return hub_id, subset or None


def _public(name: str) -> str:
    """A name without the folders of somebody's disk."""
    is_path = name.startswith(("/", "~", ".")) or Path(name).exists()
    return Path(name).name if is_path else name


def _fenced(text: str, language: str = "") -> str:
    """A code block that no text can end early."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
