"""The commands: what each takes from the command line, and what of the kit it calls."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from kit.app.options import from_arguments
from kit.errors import AdapterError, ConfigError

if TYPE_CHECKING:  # what a command needs is imported when it runs: help comes at once
    from kit.config import Config

program = typer.Typer(add_completion=False)
_train, _measure, _adapters, _look = (
    partial(program.command, rich_help_panel=panel)
    for panel in ("Train", "Measure", "Adapters", "Look")
)
_Flag = partial(Option, metavar="")
_Folder = partial(Option, metavar="FOLDER")
_File = partial(Option, metavar="FILE")
_Output = partial(Option, "--output", "-o", metavar="FOLDER")

Configs = Annotated[
    list[str], Argument(metavar="CONFIG | key=value", help="YAML recipe or run folder; overrides")
]
Recipes = Annotated[
    list[str], Argument(metavar="CONFIG | key=value", help="YAML recipes; overrides for all")
]
Adapter = Annotated[
    str, Argument(metavar="RUN_OR_ADAPTER", help="run folder, adapter folder or hub id")
]
DataDir = Annotated[str | None, _Folder(help="local copies of data sets (<name>/<split>.jsonl)")]
NewFolder = Annotated[Path, _Output(help="must not be there yet")]


@_train(short_help="train an adapter as a configuration says")
def train(
    targets: Configs,
    resume: Annotated[bool, _Flag("--resume", help="go on from the last checkpoint")] = False,
) -> None:
    """Train an adapter, as a recipe says or to go on with a run folder. Any field of the
    configuration can be overridden by key=value, e.g. optim.learning_rate=3e-5 output=runs/second.
    """
    _, config = read_config("train", targets)
    from kit.estimate.fit import check_budget
    from kit.runs import RunFolder

    if config.output is not None:  # before torch is waited for
        RunFolder(config.output).check_free(config, resume)
    check_budget(config)
    from kit.tasks.sources import check_named

    check_named(config.data.name)
    from kit.training.trainer import train

    run = train(config, resume=resume)
    _check_ended(run.status)
    if run.status == "finished":
        print(f"The adapter is in {run.adapter}; measure it with: kit evaluate {run.path} --data …")


@_train(short_help="train arms that differ in one thing, on several seeds, and evaluate them")
def compare(
    context: typer.Context,
    targets: Recipes,
    seeds: Annotated[str, Option(help="with commas; five or more tell methods apart")] = "0",
    vary: Annotated[str, Option(metavar="FIELDS", help="also may differ, with commas")] = "",
    data: Annotated[str, Option(help="to evaluate on; without, the one trained on")] = "",
    data_dir: DataDir = None,
    output: Annotated[Path, _Output(help="of the comparison")] = Path("runs/compare"),
) -> None:
    """Train every configuration with every seed, all of a seed together on one base and the same
    problems, then evaluate base and adapters. Arms may differ in objective.* alone unless --vary
    declares more. key=value overrides hold for all arms; with the prefix evaluate. they set the
    evaluation: evaluate.limit=300 evaluate.temperature=0,0.4. What is finished is not done again.
    """
    recipes, pairs = _split(targets)
    evaluation = [pair for pair in pairs if pair.startswith("evaluate.")]
    if not all(re.fullmatch(r"[0-9]{1,18}", seed) for seed in _listed(seeds)):
        raise ConfigError(f"--seeds must be numbers with commas between, got {seeds!r}")
    from kit.evaluation.settings import EvalSettings
    from kit.recipe import read_pairs

    settings = read_pairs(EvalSettings, evaluation, "evaluate.") if evaluation else None
    from kit.compare_json import read_comparison
    from kit.comparison import compare

    compare(
        recipes,
        [pair for pair in pairs if pair not in evaluation],
        seeds=[int(seed) for seed in _listed(seeds)],
        vary=_listed(vary),
        output=output,
        data=_listed(data),
        data_dir=data_dir,
        settings=settings,
        command=context.obj,
    )
    _check_ended(read_comparison(output / "compare.json").get("status"))


@_train(short_help="a declared grid of arms, staleness and rates, tuned, then measured")
def study(
    context: typer.Context,
    file: Annotated[Path, Argument(metavar="FILE", help="what is to be done, as YAML")],
    output: Annotated[Path | None, _Output(help="default: runs/<name of the file>")] = None,
    budget: Annotated[
        str | None, Option(metavar="TIME", help="begin no more runs after 3h, 90m, 1h30m")
    ] = None,
    dry_run: Annotated[bool, _Flag("--dry-run", help="say what would be done, and how long")] = (
        False
    ),
    report: Annotated[
        Path | None, _Folder(help="write it there from what is done; runs nothing")
    ] = None,
) -> None:
    """Train every arm at every staleness with every learning rate, choose the rate by validation
    accuracy as the file says, train fresh seeds with it, measure them, and answer the file's
    questions. A stopped study goes on with the same command; several processes may do so at once.
    """
    from kit.study.declared import check_budgets, load_study
    from kit.study.folder import StudyFolder
    from kit.study.plan import parse_duration, plan

    declaration = load_study(file)
    folder = output or Path("runs") / file.stem
    seconds = None if budget is None else parse_duration(budget)
    if report is None:
        from kit.tasks.sources import check_named

        check_named(declaration.base.data.name)
        check_budgets(declaration)
    if dry_run:
        print(plan(StudyFolder(folder, declaration), seconds))
        return
    if report is None:
        from kit.study.run import run_study

        ended = run_study(declaration, folder, budget=seconds, command=context.obj)
        _check_ended("finished" if ended else "interrupted")
    from kit.study.report import report_study

    report_study(declaration, folder, report or folder / "report", command=context.obj)


@_train(short_help="GPU memory and time a configuration needs, before anything is downloaded")
def estimate(
    targets: Configs,
    gpu: Annotated[
        str | None, Option(help="T4 (default), L4, A10, 3060, … or its memory in GiB")
    ] = None,
    as_json: Annotated[bool, _Flag("--json", help="print JSON, in bytes and seconds")] = False,
) -> None:
    """Say part by part what kit train would need on a GPU, and which overrides make it fit; of
    several recipes, what kit compare needs to train them together, in whatever --vary lets them
    differ. The exit status is 1 when it does not fit.
    """
    recipes, overrides = _split(targets)
    if len(recipes) > 1:
        from kit.arms import MAY_VARY, check_arms, load_arms

        arms = load_arms(recipes, overrides)
        check_arms(arms, MAY_VARY)
        config, *others = arms.values()
    else:
        config, others = read_config("estimate", targets)[1], []
    from kit.estimate.forecast import estimate

    found = estimate(config, gpu, others)
    print(json.dumps(found.record(), indent=2) if as_json else found)
    if not found.fits:
        raise ConfigError(f"{' with '.join(recipes)} does not fit on {found.gpu.name}")


@_train(short_help="is this machine as expected? a report to attach to an issue")
def doctor(
    overrides: Annotated[list[str] | None, Argument(metavar="key=value")] = None,
    config: Annotated[
        str | None, _File(help="recipe or run folder whose step is taken (default: Qwen2.5-0.5B)")
    ] = None,
    quick: Annotated[bool, _Flag("--quick", help="two minutes instead of ten")] = False,
    output: Annotated[Path, _Output(help="of the report")] = Path("runs/doctor"),
) -> None:
    """Look at versions, driver and card, measure what only the card can tell, and take one step
    of a recipe; writes doctor.json and doctor.md, which hold no paths, names or tokens. The exit
    status is 3 when anything is not as expected. Without a GPU the rest is looked at.
    """
    if overrides and not config:
        raise ConfigError(f"{overrides[0]} changes a recipe: name it with --config")
    recipe = read_config("doctor", [config, *(overrides or [])])[1] if config else None
    from kit.doctor import doctor, is_well, summary

    found = doctor(recipe, output, quick=quick)
    print(f"{summary(found)}. The report, ready to be attached to an issue: {output / 'doctor.md'}")
    if not is_well(found):
        raise typer.Exit(3)


@_train(short_help="the trust regions there are, with their settings")
def regions(plot: Annotated[Path | None, _Folder(help="draw them too, as SVG")] = None) -> None:
    """What each trust region does, its settings and where it is published."""
    from kit.regions import table

    print(table())
    if plot:
        from kit.evaluation.results import writing
        from kit.training.region_plots import write_all

        with writing(plot, "; choose another folder"):
            print(f"{len(write_all(plot))} figures -> {plot}")


@_train()
def demo(output: Annotated[Path, _Output(help="of its runs")] = Path("runs/demo")) -> None:
    """train and compare clip, clip-zero, noclip and pspo on an embedded model"""
    from kit.demo import demo

    _check_ended("finished" if demo(output) else "interrupted")


@_measure(short_help="accuracy of adapters and base on data sets")
def evaluate(
    context: typer.Context,
    data: Annotated[str, Option(help="one or several: gsm8k,svamp,asdiv,math500")],
    targets: Annotated[list[str] | None, Argument(metavar="RUN_OR_ADAPTER | key=value")] = None,
    base: Annotated[str | None, Option(metavar="MODEL", help="a bare base, to measure too")] = None,
    data_dir: DataDir = None,
    system_prompt: Annotated[
        str | None, Option(help="of adapters outside runs, and of the base")
    ] = None,
    tag: Annotated[str | None, Option(help="keep these beside results of other settings")] = None,
    overwrite: Annotated[bool, _Flag("--overwrite", help="replace results that are there")] = False,
    functions: Annotated[
        bool, _Flag("--functions", help="run those that the runs' guidelines name: their code")
    ] = False,
    limit: Annotated[str | None, Option(help="only this many problems")] = None,
    temperature: Annotated[str | None, Option(help="one or several; 0 (default) is greedy")] = None,
    samples: Annotated[
        str | None, Option(help="per problem at temperatures above 0 (default 1)")
    ] = None,
    max_new_tokens: Annotated[str | None, Option(help="longest answer (default 512)")] = None,
    seed: Annotated[str | None, Option(help="of the samples and of --limit (default 0)")] = None,
) -> None:
    """Accuracy, strict and lenient, with intervals; with several samples pass@k and majority votes
    too. All adapters and the base are sampled together. Results go to <run>/eval/, or to runs/eval/
    outside a run; what is there already is kept, so that an interrupted evaluation goes on.
    Settings may be given as key=value: temperature=0,0.2,0.4 samples=16 max_new_tokens=512 seed=0
    limit=300 top_p=1 split=test memory_budget=6GB leave_out=votes.jsonl (whose problems are not
    asked).
    """
    names, pairs = _split(targets or [])
    for key in ("limit", "temperature", "samples", "max_new_tokens", "seed"):
        if context.params[key] is not None:
            pairs.append(f"{key}={context.params[key]}")
    from kit.api import evaluate
    from kit.evaluation.settings import EvalSettings
    from kit.recipe import read_pairs

    results = evaluate(
        names,
        _listed(data),
        base=base,
        data_dir=data_dir,
        system_prompt=system_prompt,
        tag=tag,
        overwrite=overwrite,
        functions=functions,
        command=context.obj,
        **dict(read_pairs(EvalSettings, pairs)),
    )
    from kit.evaluation.benchmark import table

    print(table(results))


@_measure(short_help="tables, plots and paired statistics of runs and comparisons")
def report(
    paths: Annotated[list[str], Argument(metavar="RUN_OR_COMPARISON")],
    output: Annotated[Path | None, _Output(help="default: <first path>/report")] = None,
    votes: Annotated[list[Path] | None, _File(help="blind votes of the app")] = None,
    judge: Annotated[list[Path] | None, _File(help="a summary that kit judge wrote")] = None,
    paper: Annotated[
        Path | None, _Folder(help="write figures (SVG, PDF) and tables (LaTeX) alone there")
    ] = None,
) -> None:
    """Set runs side by side from the files in their folders: a table here, report.md, a
    self-contained report.html and figures in --output.
    """
    from kit.reports import report, report_for_paper

    if paper is None:
        report(paths, output, votes or [], judge or [])
    else:
        print(f"figures and tables -> {report_for_paper(paths, paper)}")


@_measure(short_help="let a model judge the reasoning in two results, or score it in one")
def judge(
    targets: Annotated[list[str], Argument(metavar="RUN | key=value", help="one run, or two")],
    data: Annotated[str, Option(help="the data set whose results are judged")],
    tag: Annotated[str | None, Option(help="of the results")] = None,
    limit: Annotated[int | None, Option(help="only this many problems")] = None,
    output: Annotated[
        Path | None,
        _Output(metavar="PATH", help="default: runs/judge/<data>[.<tag>].<left>[.<right>]"),
    ] = None,
) -> None:
    """Judge completions that kit evaluate wrote, by a model behind an OpenAI-compatible endpoint
    (judge.base_url=… judge.model=…; the key comes from the environment) or one loaded here
    (judge.model=…). An interrupted judgement goes on.
    """
    names, pairs = _split(targets)
    if len(names) not in (1, 2):
        raise ConfigError(f"kit judge takes one run or two, got {len(names)}")
    from kit.evaluation.results import result_path
    from kit.evaluation.subjects import results_folder
    from kit.preferences.judge import run_judge
    from kit.preferences.judge_models import JudgeConfig
    from kit.recipe import read_pairs

    config = read_pairs(JudgeConfig, pairs, "judge.")
    files = [result_path(results_folder(name), data, tag) for name in names]
    labels = [name.strip("/").replace("/", "_") for name in names]
    written = output or Path("runs/judge") / ".".join([files[0].stem, *labels])
    left, *right = [path.with_suffix(".jsonl") for path in files]
    run_judge(left, right[0] if right else None, written, config, limit)


@_measure()
def votes(
    path: Annotated[Path, Argument(metavar="VOTES.jsonl")],
    export: Annotated[Path | None, _File(help="of prompts, chosen and rejected")] = None,
) -> None:
    """count blind votes and how far voters agree, or export them as a preference data set"""
    if export:
        from kit.preferences.export import export as write

        write([str(path)], export)
        return
    from kit.preferences.tallies import tally
    from kit.preferences.votes import read_some_votes

    counted, corrupt = read_some_votes(path)
    found = [f"{pair}\n  agreement: {pair.agreement}" for pair in tally(counted)]
    print("\n".join(found) or "no blind votes between different adapters")
    if corrupt:
        print(f"{corrupt} lines of {path} could not be read and are left out")


@_measure(short_help="gather preferences to train on: votes, verdicts, a judge's, files")
def preferences(
    sources: Annotated[
        list[str], Option("--from", metavar="SOURCE", help="votes.jsonl, a run, eval/*.jsonl, …")
    ],
    output: Annotated[Path, _Output(metavar="FILE", help="must not be there yet")],
    more: Annotated[
        list[str] | None, Argument(metavar="SOURCE", help="further ones, as from eval/*.jsonl")
    ] = None,
    labelled: Annotated[
        bool, _Flag("--labelled", help="completions that are good or bad, for method: kto")
    ] = False,
    per_problem: Annotated[
        int | None, Option(min=1, help="most pairs of verdicts on a problem (default 4)")
    ] = None,
    recipe: Annotated[
        str | None,
        Option("--for", metavar="CONFIG", help="leave out what training by it would refuse"),
    ] = None,
) -> None:
    """Write preferences in TRL's format, with where each comes from, and say how many there are,
    how lengths are biased, and what could be told after training on them. A source is votes.jsonl
    of the app, a run or its samples.jsonl or eval/*.jsonl (what is right against what is wrong, of
    one problem), the .json of kit judge, a preference file, or a data set of the hub.
    """
    config = read_config("preferences", [recipe])[1] if recipe else None
    from kit.preferences.export import export
    from kit.preferences.verdicts import PER_PROBLEM

    export(
        [*sources, *(more or [])],
        output,
        labelled=labelled,
        per_problem=per_problem or PER_PROBLEM,
        recipe=config,
    )


@_adapters()
def verify(adapter: Adapter) -> None:
    """check that an adapter loads elsewhere and computes what it did"""
    _check_there(adapter)
    from kit.adapters.verify import table, verify

    checks = verify(adapter)
    print(table(checks))
    if not all(check.passed for check in checks):
        raise AdapterError(f"{adapter} did not pass")


@_adapters()
def merge(
    adapter: Adapter,
    output: NewFolder,
    dtype: Annotated[Literal["bfloat16", "float16"], Option(help="of the weights")] = "bfloat16",
) -> None:
    """merge an adapter into 16-bit weights of its base"""
    _check_there(adapter)
    from kit.adapters.merge import commands, merge

    merged = merge(adapter, output, dtype)
    print(*merged.agreements, commands(merged), sep="\n")


@_adapters()
def blend(
    adapters: Annotated[list[str], Argument(metavar="RUN_OR_ADAPTER")],
    weights: Annotated[list[float], Option(metavar="WEIGHT …", help="one for each adapter")],
    output: NewFolder,
    method: Annotated[
        str, Option(help="cat (exact), linear, ties, dare_linear, dare_ties")
    ] = "cat",
    density: Annotated[float, Option(help="share that ties and dare keep")] = 0.5,
    seed: Annotated[int, Option(help="of dare")] = 0,
) -> None:
    """mix adapters of one base into a new one"""
    _check_there(*adapters)
    from kit.adapters.blend import blend

    print(blend(adapters, weights, output, method, density=density, seed=seed))


@_adapters()
def push(
    adapter: Adapter,
    repo: Annotated[str, Argument(metavar="OWNER/NAME", help="where on the hub")],
    upload: Annotated[bool, _Flag("--upload", help="do it; without, nothing goes up")] = False,
    public: Annotated[bool, _Flag("--public", help="a new repository is private without")] = False,
) -> None:
    """show what would go to the hub, or put it there"""
    _check_there(adapter)
    from kit.adapters.push import plan_push, push

    plan = plan_push(adapter, repo)
    print(plan)
    print(push(plan, private=not public) if upload else "nothing was uploaded; add --upload")


@_look(
    "app",
    short_help="look at answers side by side in the browser",
    help="Let two adapters answer side by side, vote blind, browse stored results, watch training "
    "and read reports, at http://127.0.0.1:7860.",
)
@wraps(from_arguments)
def app(**given: Any) -> None:
    settings = from_arguments(**given)
    if not settings.runs.exists():
        from kit.spelling import did_you_mean_path

        near = did_you_mean_path(settings.runs)
        print(
            f"There is no folder {settings.runs} (--runs) yet"
            f"{near or ': nothing of yours is shown until there is'}"
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is told to anybody
    print("Loading the app …", flush=True)
    from kit.app.page import launch

    launch(settings)


def read_config(command: str, arguments: Sequence[str]) -> tuple[str, Config]:
    """The one recipe or run folder among the arguments, and its configuration, overridden."""
    names, overrides = _split(arguments)
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise ConfigError(
            f"kit {command} takes one configuration and overrides like train.steps=9, got {found}"
        )
    from kit.recipe import load_config

    path = Path(names[0])
    if not os.path.isdir(path):  # False also for names that no system allows
        return names[0], load_config(path, overrides)
    config = load_config(path / "config.yaml", overrides)
    return names[0], config.model_copy(update={"output": str(path)})


def _check_ended(status: str | None) -> None:
    """Exit with 130, as after Ctrl-C, where a command was stopped before its end."""
    if status == "interrupted":
        raise typer.Exit(130)


def _check_there(*adapters: str) -> None:
    """AdapterError for one that is missing, before torch is imported."""
    from kit.adapters.locate import adapter_folder

    for adapter in adapters:
        adapter_folder(adapter)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Plain arguments, and the key=value among them."""
    pairs = [text for text in arguments if re.match(r"[\w.-]+=", text)]
    return [text for text in arguments if text not in pairs], pairs


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
