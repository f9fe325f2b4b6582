"""Commands that are disturbed, and what of their files must be equal afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

RECIPE: dict[str, Any] = {
    "model": {"id": "embedded"},
    "lora": {"rank": 4, "alpha": 8},
    "data": {"name": "gsm_symbolic", "options": {"size": 24}, "validation_size": 2},
    "rollout": {"prompts_per_step": 2, "group_size": 3, "max_new_tokens": 12},
    "reward": {"functions": [{"path": "tests.reward_functions:share_of_vowels"}]},
    "optim": {"learning_rate": 1e-3, "warmup_fraction": 0.0},
    "train": {
        "steps": 3,
        "updates_per_rollout": 1,
        "validate_every": 2,
        "checkpoint_every": 1,
        "keep_checkpoints": 2,
        "preflight_problems": 0,
    },
}
# what clocks, processes and machines say; all else must be equal
CLOCKWORK = {
    *("started", "process", "seconds", "tokens_per_second", "git", "hardware", "status_since"),
    *("records", "files"),  # hashes: of metrics.jsonl, which has times in it, and of pickles
}
CLOCKWORK_PREFIXES = ("time/", "memory/")
VOTES = 12

Main = Callable[[Sequence[str]], int]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command in a folder of its own; giving it again goes on after a fault."""

    name: str
    prepare: Callable[[Path, Main], None]
    command: Callable[[Path], int]
    is_exact: bool = True
    """False: a kill between the saves of two arms lets one go on alone for a step, and a batch of
    another shape rounds otherwise; files, and lines of records, must still all be there."""


def scenarios(main: Main) -> list[Scenario]:
    """`main` is kit.cli.main."""

    def of(*arguments: str) -> Callable[[Path], int]:
        return lambda folder: main([word.format(folder=folder) for word in arguments])

    return [
        Scenario("train", _recipe, lambda folder: _train(folder, main)),
        Scenario(
            "evaluate",
            _trained,
            of(
                *("evaluate", "{folder}/made/run", "--data", "gsm_symbolic", "limit=3"),
                *("max_new_tokens=8", "temperature=0,1", "samples=2"),
            ),
        ),
        Scenario(
            "compare",
            _two_recipes,
            of(
                *("compare", "{folder}/clip.yaml", "{folder}/pspo.yaml"),
                *("data.options.size=24", "evaluate.limit=4", "--output", "{folder}/made/compare"),
            ),
            is_exact=False,
        ),
        Scenario("merge", _trained_outside, lambda folder: _merge(folder, main)),
        Scenario("votes", lambda folder, _: None, _vote),
    ]


def _write_recipe(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(RECIPE | changes))


def _recipe(folder: Path, _: Main) -> None:
    _write_recipe(folder / "recipe.yaml")


def _two_recipes(folder: Path, _: Main) -> None:
    for name in ("clip", "pspo"):
        train = RECIPE["train"] | {"steps": 2}
        objective = {"trust_region": {"name": name}}
        _write_recipe(folder / f"{name}.yaml", train=train, objective=objective)


def _trained(folder: Path, main: Main, where: str = "made/run") -> None:
    train = RECIPE["train"] | {"steps": 1, "validate_every": 0}
    _write_recipe(folder / "recipe.yaml", train=train)
    assert main(["train", str(folder / "recipe.yaml"), f"output={folder}/{where}"]) == 0


def _trained_outside(folder: Path, main: Main) -> None:
    _trained(folder, main, "run")


def _train(folder: Path, main: Main) -> int:
    command = ["train", str(folder / "recipe.yaml"), f"output={folder}/made/run"]
    resume = ["--resume"] if (folder / "made/run/config.yaml").exists() else []
    return main([*command, *resume])


def _merge(folder: Path, main: Main) -> int:
    target = folder / "made/merged"
    if target.exists():  # finished but for its exit
        return 0
    return main(["merge", str(folder / "run"), "-o", str(target)])


def _vote(folder: Path) -> int:
    """Votes again where a vote is not in the file: nobody was told that it is."""
    from kit.errors import ResultsError
    from kit.preferences.votes import Side, Vote, VoteSettings, append_vote, read_votes

    path = folder / "made" / "votes.jsonl"
    there = {vote.question for vote in read_votes(path)[0]} if path.exists() else set()
    left, right = (
        Side(name=name, adapter=name, adapter_sha256=None, completion="2", strict=None)
        for name in ("a", "b")
    )
    for number in range(VOTES):
        if (question := f"question {number}") not in there:
            vote = Vote(
                question=question,
                prompt=[],
                answer=None,
                left=left,
                right=right,
                settings=VoteSettings(temperature=0.0, max_new_tokens=8, seed=0),
                vote="left",
                blind=True,
            )
            try:
                append_vote(path, vote)
            except ResultsError as error:
                print(f"error: {error}")
                return 1
    return 0


def snapshot(folder: Path) -> dict[str, Any]:
    """{path: content} of what a command leaves, without what clocks and processes say."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not path.name.endswith(".lock"):
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_clocks(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "votes.jsonl":  # a line that a kill cut off stays, and counts as unreadable
        from kit.preferences.votes import read_votes

        return [vote.question for vote in read_votes(path)[0]]
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_without_clocks(json.loads(line)) for line in lines]
    if path.suffix == ".pt":  # pickles of equal values may differ in their bytes
        return _plain(torch.load(path, map_location="cpu", weights_only=True))
    return path.read_bytes()


def _plain(value: Any) -> Any:
    """Tensors as their bytes, so that == compares everything."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_clocks(inner)
            for key, inner in value.items()
            if key not in CLOCKWORK and not key.startswith(CLOCKWORK_PREFIXES)
        }
    return [_without_clocks(inner) for inner in value] if isinstance(value, list) else value


def outline(contents: dict[str, Any]) -> dict[str, Any]:
    """Which files there are, and how many lines records have."""
    return {name: len(c) if isinstance(c, list) else None for name, c in contents.items()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the files that are not equal, are missing, or are there too many."""
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name, "") != after.get(name, "")]
