"""What people and judge models prefer: tallies of votes, and summaries of `kit judge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.errors import ResultsError
from kit.preferences.tallies import tally
from kit.preferences.votes import read_some_votes
from kit.reading import parse_json
from kit.reports.document import NONE, Origin, Section, Table, number, share

JUDGE_SCHEMA = 1


def measure_opinions(
    votes: Sequence[str | Path], judgements: Sequence[str | Path]
) -> dict[str, list[Any]]:
    """The tallies of each votes.jsonl, and the summaries that `kit judge` wrote."""
    return {
        "votes": [_tallies(Path(path)) for path in votes],
        "judgements": [{"file": str(path), **_read_judge(Path(path))} for path in judgements],
    }


def describe_opinions(opinions: dict[str, list[Any]]) -> Section:
    section = Section("Votes and judges")
    section.blocks.extend(_votes_table(record) for record in opinions["votes"])
    section.blocks.extend(_TABLES[record["kind"]](record) for record in opinions["judgements"])
    return section


def _tallies(path: Path) -> dict[str, Any]:
    votes, unreadable = read_some_votes(path)
    return {
        "file": str(path),
        "votes": len(votes),
        "not_blind": sum(not vote.blind for vote in votes),
        "unreadable": unreadable,
        "tallies": [found.record() for found in tally(votes)],
    }


def _read_judge(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(path.read_bytes())
    except OSError as error:
        raise ResultsError(f"cannot read the judgements {path}: {error.strerror}") from None
    except ValueError as error:
        raise ResultsError(
            f"{path} is not valid JSON ({error}); give the .json that kit judge wrote"
        ) from None
    is_record = isinstance(record, dict) and record.get("schema") == JUDGE_SCHEMA
    try:
        if is_record:  # other files have a schema too
            _TABLES[record["kind"]]({"file": str(path), **record})
            return record
    except (KeyError, TypeError, AttributeError):
        pass  # a field is missing, or is something else
    raise ResultsError(f"{path} is no summary of kit judge of schema {JUDGE_SCHEMA}")


def _votes_table(record: dict[str, Any]) -> Table:
    return Table(
        name=f"votes {record['file']}",
        title="People's votes",
        header=(
            *("pair", "first better", "second", "tie", "both bad", "first better, %", "p"),
            *("same again", "α"),
        ),
        rows=[
            (
                f"{t['first']} and {t['second']}",
                *(str(t[key]) for key in ("first_wins", "second_wins", "ties", "both_bad")),
                share(t["win_share"]),
                _p(t["p"]),
                *_agreement(t["agreement"]),
            )
            for t in record["tallies"]
        ],
        origin=Origin.of([Path(record["file"])]),
        note=f"{record['votes']} votes; {record['not_blind']} that were not blind and "
        f"{record['unreadable']} unreadable lines are left out. The share is of votes that prefer "
        "a side, with Wilson's interval; p: exact sign test over problems. Same again: on how many "
        "of the pairs that came to a voter twice the vote was the same; α: Krippendorff's, of the "
        "pairs that several voted on.",
    )


def _agreement(agreement: dict[str, Any]) -> tuple[str, str]:
    same, alpha = agreement["with_oneself"], agreement["alpha"]
    return (
        f"{same['count']} of {same['n']}" if same["n"] else NONE,
        NONE if alpha is None else number(alpha, 2),
    )


def _pairs_table(record: dict[str, Any]) -> Table:
    shown = record["first_shown"]
    bias = f"; the solution shown first won {share(shown)} %" if shown["n"] else ""
    return Table(
        name=f"judge {record['file']}",
        title=f"{record['judge']} compares left ({record['left']}) with right ({record['right']})",
        header=("criterion", "left better", "right", "tie", "inconsistent", "left better, %", "p"),
        rows=[
            (
                name,
                *(str(o[key]) for key in ("left", "right", "ties", "inconsistent")),
                share(o["win_rate"]),
                _p(o["p"]),
            )
            for name, o in record["outcomes"].items()
        ],
        origin=Origin.of([Path(record["file"])]),
        note=f"{record['pairs']} pairs, each judged in both orders; {record['malformed']} "
        f"malformed, {record['failed']} failed{bias}. Inconsistent: the orders disagreed. The "
        "share is of decided pairs, with Wilson's interval; p: exact sign test, not corrected for "
        "the number of criteria.",
    )


def _points_table(record: dict[str, Any]) -> Table:
    return Table(
        name=f"judge {record['file']}",
        title=f"{record['judge']} scores {record['left']} from 1 to 5",
        header=("criterion", "mean", "95 % interval"),
        rows=[
            (name, NONE, NONE)
            if mean is None
            else (name, number(mean["value"], 2), _bounds(mean["ci95"]))
            for name, mean in record["scores"].items()
        ],
        origin=Origin.of([Path(record["file"])]),
        note=f"{record['scored']} of {record['completions']} scored, {record['malformed']} "
        f"malformed, {record['failed']} failed.",
    )


_TABLES = {"pairs": _pairs_table, "points": _points_table}  # by the kind of a summary


def _bounds(bounds: Sequence[float]) -> str:
    return f"[{number(bounds[0], 2)}, {number(bounds[1], 2)}]"


def _p(p: float) -> str:
    return number(p, 4)
