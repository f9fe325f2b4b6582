"""The model card of an adapter: hub metadata, results, settings, and how to load it."""

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
from kit.config import EMBEDDED, READERS, Config
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
HERE = "."  # an adapter's own folder, in the example of a card that is not for the hub
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
    config, facts, base = run.load_config(), run.read_description(), base_of(str(run.adapter))
    results = _results(run)
    name = repo or run.path.resolve().name
    data = _metadata(
        base,
        name,
        tags=[config.method, *([config.objective.trust_region.name] * (config.method == "grpo"))],
        datasets=[found for found in (_hub_data(config.data.name)[0],) if found] or None,
        eval_results=[entry for result in results for entry in _index_entries(result)],
    )
    parts = [
        f"# {name}",
        f"A LoRA adapter of {_named(base)}, trained by {_method(config)} on "
        f"{_public(config.data.name)}, with [PEFT](https://huggingface.co/docs/peft).",
        _prompt_section(config.data.system_prompt),
        _load_section(run.adapter, base, repo, config.data.system_prompt),
        _results_section(results),
        _training_section(config, facts, base),
        _license_section(data),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def blend_card(
    folder: Path, parts: Sequence[tuple[str, float, str]], how: str, system_prompt: str, name: str
) -> ModelCard:
    """The card of a blend in `folder`; `parts` are (name, weight, hash) of the adapters in it."""
    base = base_of(str(folder))
    data = _metadata(base, name, tags=["merge"])
    rows = [f"| {_public(label)} | {weight:g} | `{sha[:16]}` |" for label, weight, sha in parts]
    texts = [
        f"# {name}",
        f"A mixture of LoRA adapters of {_named(base)}, by PEFT's `add_weighted_adapter` ({how}). "
        "It was not trained further.",
        "\n".join(["| adapter | weight | sha256 |", "|---|---|---|", *rows]),
        _prompt_section(system_prompt),
        _load_section(folder, base, None, system_prompt),
        _license_section(data),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(texts) + "\n")


# --- metadata ------------------------------------------------------------------------------------


def _metadata(
    base: BaseSource,
    name: str,
    *,
    tags: list[str],
    datasets: list[str] | None = None,
    eval_results: list[EvalResult] | None = None,
) -> ModelCardData:
    on_hub = base.is_on_hub
    try:
        license: dict[str, Any] = base.license()
    except ModelError as error:
        log.warning("the card does not name the base's licence: %s", error)
        license = {}
    return ModelCardData(
        base_model=base.id if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        datasets=datasets,
        eval_results=eval_results or None,
        model_name=name,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "gr-pspo", *tags],
        **license,
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


# --- text ----------------------------------------------------------------------------------------


def _method(config: Config) -> str:
    if config.method == "sft":
        return "supervised fine-tuning on worked solutions"
    objective = config.objective
    old = {"base": "the frozen base", "sampler": "the policy that sampled"}
    return (
        f"GRPO with the trust region `{objective.trust_region.name}` (ratios per "
        f"{objective.level}, from {old[objective.resolved_old_policy]})"
    )


def _prompt_section(prompt: str) -> str:
    if not prompt:
        return "## System prompt\n\nNone: no system message is sent."
    return f"## System prompt\n\nExactly this one was used:\n\n{_fenced(prompt)}"


def _load_section(folder: Path, base: BaseSource, repo: str | None, prompt: str) -> str:
    probe = read_probe(folder)
    settings = probe.settings if probe else {"quantization": NF4, "dtype": "auto"}
    code = _load_example(base, repo or HERE, settings, prompt)
    where = "" if repo else f" `{HERE}` is the folder of this card."
    return f"## Load it\n\nIn the precision it was trained in.{where}\n\n{_fenced(code, 'python')}"


def _load_example(base: BaseSource, adapter: str, settings: dict[str, Any], prompt: str) -> str:
    """Ten lines of Python with transformers and peft, and before them a function for prompts."""
    source = "str(EMBEDDED_PATH)" if base.id == EMBEDDED else repr(_public(base.id))
    revision = f", revision={base.revision!r}" if base.revision else ""
    quantization = settings["quantization"] or {}
    given = [f"{key}={quantization[key]!r}" for key in SHOWN if quantization.get(key)]
    bits = f"BitsAndBytesConfig({', '.join(given)})" if given else None
    # of a base that was not tuned for chat the end of a turn is not among its own
    ends = f", eos_token_id={found}" if (found := settings.get("stop_ids")) else ""
    system = [{"role": "system", "content": prompt}] if prompt else []
    messages = [*system, {"role": "user", "content": "What is 17 + 25?"}]
    lines = [
        *inspect.getsource(chat_ids).partition('"""\n\n')[2].splitlines(),
        "",
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig",
        *(["from kit.config import EMBEDDED_PATH"] if base.id == EMBEDDED else []),
        f"bits = {bits}",
        f"base = AutoModelForCausalLM.from_pretrained({source}{revision}, "
        f"dtype={settings['dtype']!r}, quantization_config=bits, device_map='auto')",
        f"model = PeftModel.from_pretrained(base, {adapter!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({adapter!r})",
        f"messages = {messages!r}",
        "prompt = torch.tensor([chat_ids(tokenizer, messages)], device=model.device)",
        "print(tokenizer.decode(model.generate(prompt, max_new_tokens=256, "
        f"do_sample=False, repetition_penalty=1.0{ends})[0]))",
    ]
    return "\n".join(lines)


def _results_section(results: Sequence[Result]) -> str:
    if not results:
        return "## Results\n\nNone yet. `kit evaluate RUN --data …` measures it."
    rows = ["| data | sampled | strict, % | lenient, % |", "|---|---|---|---|"]
    for result in results:
        for temperature in result.temperatures:
            figures = result.at(temperature)
            cells = [_percent(figures[kind]) for kind in ("strict", "lenient")]
            seen = result.record["seen_in_training"]
            data = _public(result.data) + (f" ({seen} of them trained on)" if seen else "")
            rows.append(f"| {data} | {_sampling(result, temperature)} | {' | '.join(cells)} |")
    return (
        "## Results\n\nWith 95 % intervals. Strict: right, as `#### <number>`; lenient: right "
        "anywhere.\n\n" + "\n".join(rows)
    )


def _percent(figure: dict[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _training_section(config: Config, facts: dict[str, Any], base: BaseSource) -> str:
    # a run.json that was deleted is written anew without them
    versions = ", ".join(f"{n} {v}" for n, v in facts.get("versions", {}).items()) or "unknown"
    hardware = facts.get("hardware", "hardware not recorded")
    seed = facts.get("seed", config.train.seed)
    commit = (facts.get("git") or {}).get("commit", "unknown")
    settings = config.model_dump(mode="json", exclude={"output": True, "data": {"data_dir"}})
    for section, key in (("model", "id"), ("model", "adapter"), ("data", "name")):
        settings[section][key] = _public(settings[section][key] or "") or None
    for function in settings["reward"]["functions"]:
        function["path"] = _public(function["path"])
    listed = _fenced(yaml.safe_dump(settings, sort_keys=False), "yaml")
    steps = facts.get("steps", "unfinished:")
    return (
        f"## Training\n\n{steps} steps, seed {seed}, base "
        f"revision {base.revision or 'none'}, kit commit {commit}. {hardware}. "
        f"{versions}.\n\nAll settings:\n\n{listed}"
    )


def _license_section(data: ModelCardData) -> str:
    name = data.get("license_name") or data.license
    return (
        f"## Licence\n\nThat of the base{f', {name},' if name else ''} holds for weights derived "
        "from it. The terms of the training data may matter too."
    )


def _named(base: BaseSource) -> str:
    if base.is_on_hub:
        return f"[{base.id}](https://huggingface.co/{base.id})"
    return "the tiny model that ships with the kit" if base.id == EMBEDDED else _public(base.id)


def _public(name: str) -> str:
    """A name without the folders of somebody's disk."""
    is_path = name.startswith(("/", "~", ".")) or Path(name).exists()
    return Path(name).name if is_path else name


def _fenced(text: str, language: str = "") -> str:
    """A code block that no text can end early."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
