"""`kit compare`: train arms that differ in what is compared and in nothing else, then evaluate.

The folder it leaves: `compare.json`, `<arm>/seed-<s>/` (run folders), `base/eval/` (the bare base).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.arms import check_arms, differing_fields, load_arms
from kit.compare_json import COMPARE_SCHEMA, read_comparison
from kit.config import Config, DataConfig
from kit.errors import ConfigError, RunError
from kit.estimate.fit import check_budget
from kit.evaluation.results import Result
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject, data_config
from kit.files import only_one, write_atomically
from kit.recipe import listed
from kit.refusals import read_settings
from kit.runs import LOCK, RunFolder, writing
from kit.threads import check_one_process

if TYPE_CHECKING:  # torch, which compare() imports once nothing can be refused without it
    from kit.model.base import Base


def compare(
    recipes: Sequence[str | Path],
    overrides: str | Sequence[str] = (),
    *,
    seeds: int | Sequence[int] = (0,),
    vary: str | Sequence[str] = (),
    output: str | Path = "runs/compare",
    data: str | Sequence[str] = (),
    data_dir: str | None = None,
    settings: EvalSettings | Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Path:
    """Train every arm with every seed, then evaluate the base and all adapters on the same
    problems; returns the folder `output`.

    What is finished is not done again, what is unfinished goes on. All arms of a seed train in one
    process on one base. `vary` declares further fields in which arms may differ; `data` names the
    data sets of the evaluation, by default the one that is trained on (its test problems);
    `settings` are those of the evaluation, e.g. {"limit": 300}; `command` is recorded.
    Raises ConfigError for arms that differ in anything that was not declared.
    """
    check_one_process("kit compare")
    seeds = listed(seeds)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seeds must be different numbers from 0 up, got {list(seeds)}")
    arms = load_arms(recipes, listed(overrides))
    check_arms(arms, listed(vary))
    first, *others = arms.values()
    check_budget(first, others)
    names = listed(data) or [first.data.name]
    if not settings:
        settings = EvalSettings(max_new_tokens=first.rollout.max_new_tokens)
    elif not isinstance(settings, EvalSettings):
        settings = read_settings(EvalSettings, settings)
    from kit.evaluation.benchmark import table
    from kit.model.base import load_base
    from kit.tasks.problems import load_problems

    sets = [data_config(name, first.data, data_dir=data_dir) for name in names]
    for config in sets:  # what is wrong with them shows before hours of training, not after
        load_problems(config, settings.split, seed=settings.seed)
    study = Study(output := Path(output), arms, seeds)
    with study.alone():
        study.describe(status="running", data=names, command=command)
        base = load_base(first.model)
        if not all(study.train(seed, base) for seed in seeds):
            return output
        print(table(study.evaluate(base, sets, settings, command)))
    print(f"Tables, plots and statistics: kit report {output}")
    return output


class Study:
    """The folder of a comparison and what is done in it.

    `place` is where in it a run is, by arm and seed.
    """

    def __init__(
        self,
        output: Path,
        arms: Mapping[str, Config],
        seeds: Sequence[int],
        place: str = "{arm}/seed-{seed}",
    ) -> None:
        self.output = output
        self.arms = arms
        self.seeds = seeds
        self.place = place
        self.path = output / "compare.json"

    def run(self, arm: str, seed: int) -> RunFolder:
        return RunFolder(self.output / self.place.format(arm=arm, seed=seed))

    def train(self, seed: int, base: Base) -> bool:
        """All unfinished arms of a seed, together; False when the user stopped it.

        Arms that failed stay as they are: their metrics are a result too. What stopped them from
        outside, like a full disk, is no failure of theirs.
        """
        pending = [arm for arm in self.arms if not self.run(arm, seed).has_ended]
        if not pending:
            print(f"seed {seed}: finished already")
            return True
        print(f"seed {seed}: {', '.join(pending)}", flush=True)
        from kit.training.trainer import train_together

        started = time.perf_counter()
        try:
            train_together([self._config(arm, seed) for arm in pending], resume=True, base=base)
        finally:
            seconds = self.read().get("seconds", {})
            seconds[str(seed)] = seconds.get(str(seed), 0.0) + time.perf_counter() - started
            self.describe(seconds=seconds)
        ended = all(self.run(arm, seed).has_ended for arm in pending)
        if not ended:
            self.describe(status="interrupted")
            print(f"stopped; the same command continues {self.output}")
        return ended

    def evaluate(
        self,
        base: Base,
        data: Sequence[DataConfig],
        settings: EvalSettings,
        command: str | None = None,
    ) -> list[Result]:
        """The base and all finished adapters on the same problems; the comparison is done then."""
        from kit.evaluation.benchmark import benchmark

        first = next(iter(self.arms.values()))
        try:
            results = benchmark(
                self.targets(),
                data,
                settings.within(first.memory_budget),
                base=base,
                command=command,
                functions=True,
            )
        except KeyboardInterrupt:
            self.describe(status="interrupted")
            raise
        self.describe(status="finished")
        return results

    def targets(self) -> list[Subject]:
        """The base and every finished adapter."""
        first = next(iter(self.arms.values()))
        prompt = first.data.system_prompt
        results = self.output / "base" / "eval"
        targets = [Subject(first.model.id, first.model, None, prompt, results)]
        for arm in self.arms:
            for seed in self.seeds:
                run = self.run(arm, seed)
                if run.status == "finished":
                    targets.append(Subject.of_run(run.label, run, first.model, self.arms[arm]))
        return targets

    def read(self) -> dict[str, Any]:
        return read_comparison(self.path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other comparisons out of the folder; RunError while one is in it."""
        busy = RunError(
            f"another kit compare works in {self.output}; wait for it, or choose another --output"
        )
        with ExitStack() as held:
            with writing(self.output):
                held.enter_context(only_one(self.output / LOCK, busy))
            yield

    def describe(self, **facts: Any) -> None:
        """Merge facts into compare.json."""
        differing = differing_fields(self.arms)
        record = self.read() | {
            "schema": COMPARE_SCHEMA,
            "arms": {arm: {"differs": values} for arm, values in differing.items()},
            "seeds": list(self.seeds),
            "runs": {
                arm: {
                    str(seed): str(self.run(arm, seed).path.relative_to(self.output))
                    for seed in self.seeds
                }
                for arm in self.arms
            },
            "base": {"id": next(iter(self.arms.values())).model.id, "results": "base"},
        }
        with writing(self.path):
            self.output.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(record | facts, indent=2) + "\n")

    def _config(self, arm: str, seed: int) -> Config:
        config = self.arms[arm]
        return config.model_copy(
            update={
                "output": str(self.run(arm, seed).path),
                "train": config.train.model_copy(update={"seed": seed}),
            }
        )
