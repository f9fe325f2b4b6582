"""What the cells of the notebook do: examine, plan, estimate, train, evaluate, pack and push.

Training and evaluation run in a process of their own, so that the notebook's holds no GPU memory.
How things are shown is in kit.notebook.show.
"""

from __future__ import annotations

import io
import os
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from kit.config import Config
from kit.errors import AdapterError, ConfigError, RunError, first_line
from kit.estimate.forecast import estimate as estimate_arm
from kit.estimate.gpus import DEFAULT_GPU, known_as
from kit.files import only_one, publish, sync_file
from kit.notebook import process
from kit.notebook.kaggle_inputs import locate
from kit.notebook.place import CHECKOUT, Place, keep_folder
from kit.notebook.show import LiveCurves, offer_download
from kit.recipe import load_config
from kit.runs import RunFolder, writing

CONFIGS = CHECKOUT / "configs"
SEED = 0
LOG = "notebook.log"
NOT_AS_EXPECTED = 3  # the status of `kit doctor` where something is not
SPREAD = (
    "at the same time; then the command below finds them trained, and evaluates on the first card"
)
SECRET = "HF_TOKEN"  # its name among Kaggle's secrets
NOT_PACKED = {"checkpoints", ".lock"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Arms that are trained together and compared, and the folder this is kept in."""

    place: Place
    folder: Path
    recipes: tuple[Path, ...]
    overrides: tuple[str, ...]  # key=value, of all arms
    data: str  # trained on, and in its test split evaluated on
    problems: int  # of the evaluation
    data_dir: Path | None  # where the data set is attached

    @property
    def configs(self) -> dict[str, Config]:
        """By arm."""
        return {path.stem: load_config(path, list(self.overrides)) for path in self.recipes}

    @property
    def runs(self) -> dict[str, RunFolder]:
        """By arm."""
        folders = {path.stem: self.folder / path.stem / f"seed-{SEED}" for path in self.recipes}
        return {arm: RunFolder(folder) for arm, folder in folders.items()}

    @property
    def is_spread(self) -> bool:
        """Whether each arm has a card of its own."""
        return 1 < len(self.recipes) <= self.place.cards

    @property
    def trainings(self) -> list[list[str]]:
        """What trains each arm alone, into the folder where `command` looks for it."""
        return [
            [
                *("train", str(path), *self.overrides, f"train.seed={SEED}"),
                *(f"output={run.path}", "--resume"),
            ]
            for path, run in zip(self.recipes, self.runs.values(), strict=True)
        ]

    @property
    def command(self) -> list[str]:
        """What trains and evaluates all of it, and goes on with what is not finished."""
        tokens = next(iter(self.configs.values())).rollout.max_new_tokens
        attached = ["--data-dir", str(self.data_dir)] if self.data_dir else []
        return [
            *("compare", *map(str, self.recipes), *self.overrides),
            *(f"evaluate.limit={self.problems}", f"evaluate.max_new_tokens={tokens}"),
            *("--seeds", str(SEED), "--data", self.data, *attached, "--output", str(self.folder)),
        ]

    def __str__(self) -> str:
        runs = {arm: run.status for arm, run in self.runs.items() if run.has_results}
        there = [f"There already: {arm}, {status}." for arm, status in runs.items()]
        model = next(iter(self.configs.values())).model.path
        taken = [f"The model is the copy in {model}"] if model else []
        if self.data_dir:
            taken.append(f"The problems are those in {(self.data_dir / self.data).resolve()}")
        cards = [f"Each arm is trained on a card of its own, {SPREAD}"] if self.is_spread else []
        command = shlex.join(["kit", *self.command])
        lines = [f"Kept in {self.folder}", *taken, *there, *cards, f"The command: {command}"]
        return "\n".join(lines)


def make_plan(
    place: Place,
    *,
    arms: Sequence[str],
    model: str,
    data: str,
    steps: int,
    max_new_tokens: int,
    problems: int,
    overrides: Sequence[str] = (),
    keep: str = "",
    run: str = "notebook",
) -> Plan:
    """The notebook's settings, checked; mounts Drive on Colab and finds what Kaggle has attached.

    Raises ConfigError for an unknown recipe and for a setting that is not allowed, DataError for
    what neither is attached nor can be downloaded.
    """
    recipes = tuple(CONFIGS / f"{arm}.yaml" for arm in arms)
    unknown = [path.stem for path in recipes if not path.is_file()]
    if unknown:
        known = sorted(path.stem for path in CONFIGS.glob("[!_]*.yaml"))
        raise ConfigError(f"no recipe {', '.join(unknown)} in configs/; known: {', '.join(known)}")
    keep_in = keep_folder(place, keep)
    sources = locate(place, model, data, keep_in / "data")
    attached = [f"data.data_dir={sources.data_dir}"] if sources.data_dir else []
    attached += [f"model.path={sources.model_dir}"] if sources.model_dir else []
    pairs = (
        *(f"model.id={model}", f"data.name={data}", f"train.steps={steps}"),
        *(f"rollout.max_new_tokens={max_new_tokens}", *attached, *overrides),
    )
    for path in recipes:
        load_config(path, list(pairs))
    return Plan(place, keep_in / run, recipes, pairs, data, problems, sources.data_dir)


def examine(place: Place, keep: str = "") -> Path:
    """Run `kit doctor --quick`, show what it finds, and return the folder of its report.

    What is not as expected stops nothing. Raises RunError when the command itself fails.
    """
    folder = keep_folder(place, keep) / "doctor"

    def show(output: process.Output) -> None:
        if lines := output.read():
            print(*lines, sep="\n", flush=True)

    command = ["doctor", "--quick", "--output", str(folder)]
    process.run(command, folder / LOG, show, may_end_with=(0, NOT_AS_EXPECTED))
    return folder


def describe_cost(plan: Plan, gpu: str = "") -> str:
    """`kit estimate` of one arm, and what the whole notebook takes; `gpu` "": the one here."""
    card = plan.place.card
    gpu = gpu or (known_as(card.name, card.memory) if card else DEFAULT_GPU)
    one_arm = estimate_arm(next(iter(plan.configs.values())), gpu)
    span = hours(plan, gpu)
    if span is None:
        return str(one_arm)
    arms, answers = len(plan.recipes), (1 + len(plan.recipes)) * plan.problems
    spread = " Here the arms are trained side by side, each on its own." if plan.is_spread else ""
    return (
        f"{one_arm}\n\nThe whole notebook on {one_arm.gpu.name}: {arms} arms, as if one were "
        f"trained after the other, and {answers:,} answers\nto test problems: {span[0]:.2f} to "
        f"{span[1]:.2f} hours. Computed, not measured.{spread}"
    )


def hours(plan: Plan, gpu: str) -> tuple[float, float] | None:
    """Least and most for training and evaluation; None where the GPU's speed is not known.

    Greedy answers to test problems take as long as a validation of as many problems.
    """
    least = most = 0.0
    for config in plan.configs.values():
        times = estimate_arm(config, gpu).seconds
        if not times:
            return None
        least, most = least + times["whole run"][0], most + times["whole run"][1]
    data = config.data.model_copy(update={"validation_size": plan.problems})
    train = config.train.model_copy(update={"validate_every": 1})
    tested = estimate_arm(config.model_copy(update={"data": data, "train": train}), gpu)
    targets = 1 + len(plan.recipes)  # the base too
    least += targets * tested.seconds["validation"][0]
    most += targets * tested.seconds["validation"][1]
    return least / 3600, most / 3600


def train(plan: Plan) -> None:
    """Train all arms, then evaluate them and their base, and show the curves as they grow.

    What is finished is not done again, what was interrupted goes on from its newest checkpoint.
    Where there is a card for each arm, the arms are first trained side by side. An interrupt is
    passed on: the step is finished and saved first. Raises RunError with the last lines of the log
    when training fails.
    """
    for run in plan.runs.values():
        if run.status == "failed":  # `kit compare` would leave it as it is
            run.describe(status="interrupted")
    curves = LiveCurves(plan.folder)
    try:
        if plan.is_spread:
            left = [run.status != "finished" for run in plan.runs.values()]
            process.run_on_cards(
                list(compress(plan.trainings, left)), plan.folder / LOG, curves.show
            )
        process.run(plan.command, plan.folder / LOG, curves.show)
    except KeyboardInterrupt:
        print(f"Stopped; kept in {plan.folder}. To go on, run this cell again, or all of them.")
        raise
    finally:
        curves.end()


def pack(plan: Plan) -> Path:
    """Write the report, and a zip of everything but checkpoints, and offer it for download."""
    from kit.reports import report

    with redirect_stdout(io.StringIO()):  # its tables were shown already
        report([plan.folder])
    path = plan.folder.with_name(f"{plan.folder.name}.zip")
    partial = path.with_name(f"{path.name}.part")
    busy = RunError(f"{path} is being written already; wait for it")
    with writing(path), only_one(plan.folder / ".zip.lock", busy):
        try:
            _write_zip(plan, partial)
            publish(partial, path)
        finally:  # when the disk is full, the part is in the way of everything else
            partial.unlink(missing_ok=True)
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MB): adapters, metrics, answers, report.html")
    offer_download(path, plan.place)
    return path


def _write_zip(plan: Plan, path: Path) -> None:
    with path.open("wb") as opened:
        with zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(plan.folder.rglob("*")):
                name = file.relative_to(plan.folder.parent)
                is_wanted = file.is_file() and file.suffix != ".lock"
                if is_wanted and not NOT_PACKED.intersection(name.parts):
                    packed.write(file, name)
        sync_file(opened)


def push(plan: Plan, hub: str = "") -> None:
    """Put the adapters into private repositories <hub>-<arm>; "" only says what would go there.

    Raises AdapterError without a token and when the hub refuses.
    """
    from kit.adapters.push import plan_push
    from kit.adapters.push import push as upload

    for arm, run in plan.runs.items():
        repo = f"{hub or 'OWNER/NAME'}-{arm}"
        try:
            ready = plan_push(str(run.path), repo)
        except AdapterError as error:
            if hub:
                raise
            print(f"{arm} could not be pushed: {error}")
            continue
        print(ready)
        if hub:
            with _token(plan.place):
                print(upload(ready))
    if not hub:
        print("Nothing was uploaded: HUB is empty.")


@contextmanager
def _token(place: Place) -> Iterator[None]:
    """The hub token where huggingface_hub looks for it; Colab's secrets it reads by itself.

    Raises AdapterError when Kaggle does not give it.
    """
    from huggingface_hub import get_token

    if place.name != "kaggle" or get_token() is not None:
        yield
        return
    from kaggle_secrets import UserSecretsClient

    try:
        os.environ[SECRET] = UserSecretsClient().get_secret(SECRET)
    except Exception as error:  # classes of its own, which derive from nothing else
        raise AdapterError(
            f"Kaggle does not give the secret {SECRET}: {first_line(error)}. Attach it to this "
            "notebook (Add-ons > Secrets) and turn on the internet (Session options > Internet)"
        ) from error
    try:
        yield
    finally:
        del os.environ[SECRET]
