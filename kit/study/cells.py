"""The runs of a study in the order in which they are done, as cells of its grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.config import Config
from kit.study.declared import Declaration


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run: an arm at a staleness, with a learning rate and a seed."""

    arm: str
    staleness: int
    seed: int
    rate: float | None  # None: the tuned one, for a fresh seed

    @property
    def is_fresh(self) -> bool:
        return self.rate is None

    @property
    def place(self) -> Path:
        """The run folder, from the study's."""
        kind = "tuned" if self.rate is None else f"rate-{self.rate:g}"
        return Path(f"updates-{self.staleness}") / kind / f"seed-{self.seed}" / self.arm

    @property
    def group(self) -> tuple[int, float | None, int]:
        """Cells with the same are neighbours in the order and may train together."""
        return self.staleness, self.rate, self.seed

    def __str__(self) -> str:
        kind = "tuned rate" if self.rate is None else f"rate {self.rate:g}"
        return f"{self.arm}, {self.staleness} updates, {kind}, seed {self.seed}"


def cells(declaration: Declaration) -> Iterator[Cell]:
    """All of them. A staleness is done after the other, first its tuning, then its fresh seeds;
    rates from the middle outwards, every arm before the next rate or seed."""
    settings = declaration.settings
    for staleness in settings.staleness:
        for rate in middle_first(settings.rates_at(staleness)):
            for seed in settings.tuning.seeds:
                yield from (Cell(arm, staleness, seed, rate) for arm in declaration.configs)
        for seed in settings.seeds:
            yield from (Cell(arm, staleness, seed, None) for arm in declaration.configs)


def middle_first(rates: Sequence[float]) -> list[float]:
    """From the middle outwards, the smaller of two first."""
    rising = sorted(rates)
    middle = (len(rising) - 1) / 2
    places = sorted(range(len(rising)), key=lambda place: (abs(place - middle), place))
    return [rising[place] for place in places]


def config_of(declaration: Declaration, cell: Cell, folder: Path, rate: float) -> Config:
    """The configuration of a cell in a study's folder; `rate` is the tuned one where it is fresh.

    The only validations are before the first step and after the last, so that the adapter is
    that of the last step: the best one would hide a run that fell.
    """
    config = declaration.configs[cell.arm]
    steps = declaration.settings.rollouts_at(cell.staleness)
    train = config.train.model_copy(
        update={
            **{"steps": steps, "validate_every": steps, "checkpoint_every": steps},
            **{"keep_checkpoints": 1, "preflight_problems": 0, "report_to": []},
            **{"seed": cell.seed, "updates_per_rollout": cell.staleness},
        }
    )
    return config.model_copy(
        update={
            "output": str(folder / cell.place),
            "optim": config.optim.model_copy(update={"learning_rate": rate}),
            "train": train,
        }
    )
