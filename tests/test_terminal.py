"""What a terminal gets to see: no control of a stranger, and progress bars as they were."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tqdm import tqdm

from kit.cli import main
from kit.errors import OutputError
from kit.preferences.votes import append_vote
from kit.terminal import InertStream, inert, make_inert
from tests.preferences.test_votes import CLIP, vote

ROOT = Path(__file__).parents[1]
CLIPBOARD = "\x1b]52;c;Y3VybCBldmlsLmV4YW1wbGUK\x07"
HOSTILE = {
    "clipboard": CLIPBOARD,
    "clipboard in C1": "\x9d52;c;Y3VybA==\x9c",
    "title": "\x1b]0;pwned\x1b\\",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "clear in C1": "\x9b2J",
    "hidden": "\x1b[8mhidden\x1b[0m",
    "keys": "\x1b[6n\x1b[c\x05",
    "charset": "\x0e\x1b(0",
    "device": "\x1bP$q\x1b\\ \x90q\x9c",
    "over": "\rall is well",
    "back": "bad\b\b\bgood",
    "bell": "\a",
    "page": "\f\v\0\x7f",
    "next line": "\x85\u2028\u2029",
    "reordered": "\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "unseen": "a\u200bb\ufeff\u2060\U000e0041\xad",
    "half a pair": "\ud83d",
    "raw byte of a name": os.fsdecode(b"\x9b2J\xff"),
}


def is_safe(text: str) -> bool:
    """Whether a terminal shows all of it, tabs, line breaks and the joiners of scripts aside."""
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    return not hidden - set("\t\n\u200c\u200d")


@pytest.mark.parametrize("name", HOSTILE)
def test_controls_are_spelled_out(name):
    shown = inert(f"before{HOSTILE[name]}after")
    assert is_safe(shown) and shown.startswith("before") and shown.endswith("after")
    assert "\\" in shown
    shown.encode("utf-8")


def test_how_they_are_spelled_out():
    assert inert(CLIPBOARD) == r"\x1b]52;c;Y3VybCBldmlsLmV4YW1wbGUK\x07"
    assert inert("a\rb\bc\x9bd\u202ee\U000e0041\ud83d") == (
        r"a\rb\x08c\x9bd\u202ee\U000e0041\ud83d"
    )


@pytest.mark.parametrize(
    "text",
    ["a\tb\nc", "α − × “quoted” …", "नी\u200cन", "👩\u200d🔬", "עברית العربية", "\\x1b", "100%|██"],
)
def test_what_is_meant_to_be_seen_stays(text):
    assert inert(text) == text
    assert inert(text.replace("\n", "\r\n")) == text


def test_every_control_that_unicode_knows_is_spelled_out():
    """But for marks that are seen, such as the Arabic sign of a number, and the two joiners."""
    seen = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    kept = [
        code
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and inert(chr(code)) == chr(code)
    ]
    assert set(kept) - seen == {ord("\t"), ord("\n"), 0x200C, 0x200D}


# --- the streams ----------------------------------------------------------------------------------


def written(*texts):
    """What a terminal gets of these writes."""
    stream = io.StringIO(newline="")
    inert_stream = InertStream(stream)
    for text in texts:
        assert inert_stream.write(text) == len(text)
    return stream.getvalue()


@pytest.mark.parametrize(("code", "is_unread"), [(errno.ENOSPC, False), (errno.EPIPE, True)])
def test_what_the_stream_refuses_says_where_it_was_to_go(code, is_unread):
    class Refusing(io.StringIO):
        def write(self, text):
            raise OSError(code, os.strerror(code))

        def flush(self):
            self.write("")

    for call in (lambda s: s.write("x"), lambda s: s.writelines(["x"]), InertStream.flush):
        with pytest.raises(OutputError, match=r"^cannot write to the standard output: ") as caught:
            call(InertStream(stream := Refusing()))
        assert caught.value.stream is stream and caught.value.is_unread is is_unread


def test_a_bar_is_drawn_over_itself_alone():
    assert written("\r 1%|", "\r 2%|", "\n") == "\r 1%|\r 2%|\n"
    assert written("text\n", "\r 1%|") == "text\n\r 1%|"
    assert written("error: ", "\rfine") == r"error: \rfine"
    assert written("\r 1%|", "x", "\rfine") == "\r 1%|x" + r"\rfine"
    assert written("\r 1%|\x1b[2J\r", "\r") == "\r 1%|\\x1b[2J\\r\r"
    assert written("\rone\ntwo", "\rthree") == r"\rone" + "\n" + r"two\rthree"


def test_moves_reach_bars_alone():
    up = "\x1b[A"
    assert written("\r 1%|", "\n", "\r 2%|", up, "\r 3%|") == "\r 1%|\n\r 2%|" + up + "\r 3%|"
    assert written("text", "\n", up) == "text\n" + r"\x1b[A"
    assert written("text\n", up) == "text\n" + r"\x1b[A"
    assert written("text\n", "\n\n", up * 2, "\r%") == "text\n\n\n" + up * 2 + "\r%"
    assert written("text\n", "\n\n", up * 3) == "text\n\n\n" + r"\x1b[A" * 3
    assert written("text\n", "\n", "more", up) == "text\n\nmore" + r"\x1b[A"
    assert written("\n\n", up, up, up) == "\n\n" + up * 2 + r"\x1b[A"
    assert written("\n", "\x1b[B") == "\n" + r"\x1b[B"


@pytest.mark.parametrize("nested", [1, 3])
def test_bars_of_tqdm_are_what_they_were(nested):
    def draw(stream):
        look = {"mininterval": 0, "bar_format": "{desc} {n}|{bar}|", "ncols": 40}  # no times
        bars = [
            tqdm(total=3, file=stream, position=i, desc=f"bar {i}", **look) for i in range(nested)
        ]
        for _ in range(3):
            for bar in bars:
                bar.update()
            bars[0].clear()
            bars[0].refresh()
        for bar in bars:
            bar.close()

    plain, filtered = io.StringIO(newline=""), io.StringIO(newline="")
    draw(plain)
    draw(InertStream(filtered))
    assert filtered.getvalue() == plain.getvalue()
    assert "\r" in filtered.getvalue() and (nested == 1 or "\x1b[A" in filtered.getvalue())


def test_a_bar_of_hostile_words(capsys):
    make_inert()
    with tqdm(total=1, desc=f"run {CLIPBOARD}") as bar:
        bar.set_postfix_str("\x1b[2J\rdone")
        tqdm.write(f"said {CLIPBOARD}\rover")
        bar.update()
    out, err = capsys.readouterr()
    assert out == r"said \x1b]52;c;Y3VybCBldmlsLmV4YW1wbGUK\x07\rover" + "\n"
    assert is_safe(err.replace("\r", "")) and r"\x1b[2J\rdone" in err


def test_streams_are_replaced_once_and_are_else_what_they_were(capfd):
    make_inert()
    first = sys.stdout
    make_inert()
    assert sys.stdout is first and first.fileno() > 0
    assert first.encoding and first.isatty() is False and first.writable()
    print("a", CLIPBOARD, sep="\r", flush=True)
    sys.stderr.writelines(["b\x9b", "c\n"])
    out, err = capfd.readouterr()
    assert out == r"a\r\x1b]52;c;Y3VybCBldmlsLmV4YW1wbGUK\x07" + "\n" and err == "b\\x9bc\n"


# --- all ways in which the command line speaks ----------------------------------------------------


# a shell hands on no zeros, and no halves of pairs but those that stand for raw bytes
@pytest.mark.parametrize("name", [n for n in HOSTILE if n not in ("page", "half a pair")])
def test_errors_are_inert(capsys, name):
    is_raw = name == "raw byte of a name"
    assert main(["train", f"{HOSTILE[name]}.yaml"]) == (2 if is_raw else 1)
    error = capsys.readouterr().err
    said = "is not valid UTF-8" if is_raw else "cannot read the configuration"
    assert is_safe(error) and said in error and "\\" in error


def test_tallies_of_votes_are_inert(tmp_path, capsys):
    path = tmp_path / "votes.jsonl"
    hostile = replace(CLIP, name=f"clip{CLIPBOARD}\r\x9b2J\u202e")
    append_vote(path, vote(right=hostile))
    assert main(["votes", str(path)]) == 0
    shown = capsys.readouterr().out
    assert is_safe(shown) and r"clip\x1b]52;c;" in shown


def test_unknown_options_are_inert(capsys):
    assert main(["demo", f"--{CLIPBOARD}"]) == 2
    error = capsys.readouterr().err
    assert is_safe(error) and r"\x1b]52" in error


SPEAKS = r"""
import logging, sys, threading, warnings
import kit.cli as cli
import kit.preferences.votes as votes
bad = "\x1b]52;c;AAAA\x07\r\x9b2J\u202e\ud83d"
def speak(path):
    logging.getLogger("kit.x").warning("logged %s", bad)
    try:
        raise ValueError(bad)
    except ValueError:
        logging.getLogger("kit.x").exception("caught")
    warnings.warn("warned " + bad)
    thread = threading.Thread(target=lambda: 1 / 0, name=bad)
    thread.start(); thread.join()
    print("printed", bad)
    class Bad:
        def __del__(self): raise ValueError(bad)
    Bad()
    raise RuntimeError("uncaught " + bad)
votes.read_votes = speak
sys.exit(cli.main(["votes", "x"]))
"""


def test_logs_warnings_and_tracebacks_are_inert():
    """In a process of its own, to its very end."""
    done = subprocess.run([sys.executable, "-c", SPEAKS], cwd=ROOT, capture_output=True)
    out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert done.returncode == 1 and is_safe(out) and is_safe(err)
    bad = r"\x1b]52;c;AAAA\x07\r\x9b2J\u202e\ud83d"
    assert f"printed {bad}" in out
    for said in (f"logged {bad}", f"ValueError: {bad}", f"warned {bad}", "ZeroDivisionError"):
        assert said in err
    assert err.rstrip().endswith(f"RuntimeError: uncaught {bad}")


REWARD = """
def score(completions, **given):
    raise ValueError("cannot score \\x1b]52;c;AAAA\\x07\\r\\x9b2J")
"""


@pytest.mark.smoke
def test_a_failing_reward_speaks_inert(make_config, tmp_path, capsys, monkeypatch):
    """As `kit train` prints the error of a user's function, which may quote a completion."""
    (tmp_path / "hostile_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "tiny.yaml"
    config = make_config(reward={"functions": [{"path": "hostile_reward:score"}]})
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["train", str(recipe)]) == 1
    error = capsys.readouterr().err
    assert r"cannot score \x1b]52;c;AAAA\x07\r\x9b2J" in error
    assert is_safe(error.replace("\r", ""))  # those of the progress bar
