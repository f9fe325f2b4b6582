"""Durable writes: on the disk before a call returns, whole or not at all, one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit import files
from kit.files import (
    append_json,
    append_line,
    lock_of,
    new_folder,
    only_one,
    restore_folder,
    write_atomically,
)
from kit.reading import digest, parse_json

# holds the lock of its first argument until its standard input is closed
HOLDER = """
import sys
from pathlib import Path
from kit.files import {call} as hold
with hold(Path(sys.argv[1]){more}):
    print("held", flush=True)
    sys.stdin.read()
"""


# writes a file, and between its content and its name waits until its standard input is closed
WRITER = """
import sys
from pathlib import Path
from kit import files
def sync(file):
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
files.sync_file = sync
files.write_atomically(Path(sys.argv[1]), "of the other")
"""


@pytest.fixture
def synced(monkeypatch):
    """What is synced and renamed, in order: names of files, and of folders with a slash."""
    seen: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def name(number):
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        return path.name + ("/" if path.is_dir() else "")

    def moving(move):
        def moved(self, target):
            seen.append(f"{self.name} -> {Path(target).name}")
            return move(self, target)

        return moved

    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(name(number)), fsync(number)))
    monkeypatch.setattr(Path, "rename", moving(rename))
    monkeypatch.setattr(Path, "replace", moving(replace))
    return seen


def held_by_another(path: Path, call: str, more: str = ""):
    return waiting(HOLDER.format(call=call, more=more), path, "held")


def waiting(source: str, path: Path, said: str):
    """A process that has come as far as it says, and goes on when its standard input is closed."""
    child = subprocess.Popen(
        [sys.executable, "-c", source, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == f"{said}\n"
    return child


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_a_written_file_and_its_name_are_durable(tmp_path, synced):
    write_atomically(tmp_path / "a.json", "1")
    here = f"{tmp_path.name}/"
    assert synced == ["a.json.part", "a.json.part -> a.json", here]


@linux
def test_appended_lines_are_durable_and_a_new_file_has_its_name(tmp_path, synced):
    append_json(tmp_path / "a.jsonl", [{"step": 1}])
    append_json(tmp_path / "a.jsonl", [{"step": 2}])
    assert synced == ["a.jsonl", f"{tmp_path.name}/", "a.jsonl"]


@linux
def test_a_new_folder_is_durable_with_all_in_it(tmp_path, synced):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", replace=True) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("x")
    moves = ["out -> out.old", "out.part -> out", f"{tmp_path.name}/"]
    assert synced == ["out.part/", "file", "deep/", *moves]


@pytest.mark.parametrize("append", [append_json, append_line])
def test_what_does_not_fit_is_not_half_there(tmp_path, monkeypatch, append):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n')

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync_file", full)
    with pytest.raises(OSError, match="No space left"):
        append(path, b"2" if append is append_line else [{"step": 2}])
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    append_json(path, [{"step": 2}])
    assert path.read_bytes() == b'{"step": 1}\n{"st\n{"step": 2}\n'


def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", "old")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_of_two_processes_that_write_a_file_one_waits(tmp_path, monkeypatch):
    child, flock = waiting(WRITER, tmp_path / "a", "written"), fcntl.flock

    def when_the_other_goes_on(number, how):
        child.stdin.close()
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", when_the_other_goes_on)
    write_atomically(tmp_path / "a", "mine")
    child.stdin.close()
    assert child.wait() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "mine"


def test_the_rest_of_a_killed_writer_is_in_nobodys_way(tmp_path):
    child = waiting(WRITER, tmp_path / "a", "written")
    child.kill()
    child.wait()
    assert (tmp_path / "a.part").read_text() == "of the other"
    write_atomically(tmp_path / "a", "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "mine"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    (tmp_path / "out.old").mkdir()
    (tmp_path / "out.old" / "mine").write_text("old")
    (tmp_path / "out.part").mkdir()
    restore_folder(tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "old"
    assert not (tmp_path / "out.old").exists()


def test_a_folder_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "out").write_text("a file")
    with new_folder(tmp_path / "out", replace=True) as partial:
        (partial / "file").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out/file").is_file()


def test_two_processes_do_not_write_one_folder(tmp_path):
    child = held_by_another(tmp_path / "out", "new_folder")
    (tmp_path / "out.part" / "half").write_text("of the other")
    try:
        with (
            pytest.raises(BlockingIOError, match="another process is writing it"),
            new_folder(tmp_path / "out"),
        ):
            raise AssertionError("not reached")
        assert (tmp_path / "out.part" / "half").is_file()
    finally:
        child.kill()
        child.wait()
    with new_folder(tmp_path / "out") as partial:  # of a dead one the rest is removed
        assert not list(partial.iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    lock, busy = tmp_path / "deep" / ".lock", ValueError("busy")
    child = held_by_another(lock, "only_one", ", ValueError()")
    try:
        with pytest.raises(ValueError, match="busy"), only_one(lock, busy):
            raise AssertionError("not reached")
    finally:
        child.communicate("")
    with only_one(lock, busy):
        pass


def test_a_lock_of_this_folder_is_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lock_of(Path(".")) == tmp_path.with_name(f"{tmp_path.name}.lock")
    assert lock_of(Path("a")) == Path("a.lock")


def test_a_digest_is_of_the_first_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"one\ntwo\n")
    (tmp_path / "b").write_bytes(b"one\n")
    assert digest(tmp_path / "a", 4) == digest(tmp_path / "b") != digest(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": ' + b"9" * 400 + b"}", "too large"),
        (b'{"a": 1e999}', "too large"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "can't decode"),
        (b"", "Expecting value"),
        (rb'{"a": ["\ud83d"]}', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "can't decode"),  # the same, as bytes
    ],
)
def test_json_that_cannot_be_trusted(text, message):
    with pytest.raises(ValueError, match=message) as refusal:
        parse_json(text)
    assert "\n" not in str(refusal.value)


def test_json_is_read_as_it_was_written():
    record = {"a": [1, -2.5, None, True], "n": float("inf"), "big": 2**62, "😀": "\\ud83d"}
    assert parse_json(json.dumps(record)) == record
