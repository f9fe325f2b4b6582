"""`kit doctor`: is this machine as the kit expects, and what can its card alone tell?"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from kit import __version__
from kit.config import Config
from kit.doctor import decoding, gaps, kernels, machine, speeds, step, versions
from kit.doctor.findings import Finding, judged, not_measured
from kit.doctor.patient import Patient
from kit.doctor.private import without_private
from kit.errors import first_line, is_out_of_memory
from kit.files import write_atomically
from kit.model.hardware import empty_cache
from kit.reports import finite
from kit.reports.document import Origin, Section, Table, Text
from kit.reports.page import to_markdown
from kit.runs import writing
from kit.threads import check_one_process

SCHEMA = 1  # of doctor.json
Look = Callable[[Patient], Iterator[Finding]]
# what is looked at, in this order: what is quick and fails least comes first
LOOKS: dict[str, tuple[Look, ...]] = {
    "Machine": (machine.card, machine.precision, machine.driver, machine.memory),
    "Versions": (versions.versions,),
    "Speed": (speeds.launches, speeds.bandwidth),
    "Numbers": (kernels.agreement, gaps.gaps),
    "Decoding": (decoding.decoding,),
    "One step": (step.step,),
}


def doctor(recipe: Config | None, output: Path, *, quick: bool = False) -> dict[str, list[Finding]]:
    """Look at everything, print each finding, and write doctor.json and doctor.md into `output`.

    What fails is a finding itself, and the rest goes on. Both files are written anew after every
    look, so that a crash leaves what was found before it. Raises ConfigError under a launcher,
    RunError where nothing can be written.
    """
    check_one_process("kit doctor")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    patient = Patient(device, recipe, quick=quick)
    found: dict[str, list[Finding]] = {}
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for title, looks in LOOKS.items():
        for look in looks:
            for finding in _survived(title, look, patient):
                found.setdefault(title, []).append(finding)
                print(finding, flush=True)
            _write(output, found, quick=quick, seconds=time.monotonic() - started)
    return found


def is_well(found: dict[str, list[Finding]]) -> bool:
    """Whether nothing is otherwise than expected."""
    return all(f.verdict != "not as expected" for findings in found.values() for f in findings)


def summary(found: dict[str, list[Finding]]) -> str:
    """How many findings have which verdict, in words."""
    counts = Counter(finding.verdict for findings in found.values() for finding in findings)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))


def _survived(title: str, look: Look, patient: Patient) -> Iterator[Finding]:
    """What a look finds; its failure is its last finding."""
    if patient.seconds_left < 0:
        yield not_measured(title.lower(), "the time was over")
        return
    try:
        yield from map(without_private, look(patient))
    except Exception as error:  # whatever breaks on this machine is what is looked for
        error.__traceback__ = None  # its frames would keep what fills the memory
        yield without_private(_failure(title.lower(), error))
    gc.collect()
    empty_cache(patient.device)


def _failure(what: str, error: Exception) -> Finding:
    said = f"{type(error).__name__}: {first_line(error)}"
    if is_out_of_memory(error):
        return not_measured(what, f"out of memory: {said}")
    return judged(what, False, said, "no error")


def _write(output: Path, found: dict[str, list[Finding]], *, quick: bool, seconds: float) -> None:
    """doctor.json and doctor.md, of what has been found so far."""
    form = "quick" if quick else "full"
    record = {
        "schema": SCHEMA,
        "kit": __version__,
        "form": form,
        "seconds": seconds,
        "findings": [
            {"section": title, **asdict(finding)}
            for title, findings in found.items()
            for finding in findings
        ],
    }
    with writing(output):
        write_atomically(output / "doctor.json", json.dumps(finite(record), indent=1) + "\n")
        write_atomically(output / "doctor.md", _page(found, form, seconds))


def _page(found: dict[str, list[Finding]], form: str, seconds: float) -> str:
    """The findings as Markdown: first what is not as expected, then a table for each part."""
    sections = [Section("Summary")]
    sections[0].say(f"{summary(found)}; the {form} form of kit {__version__}, {seconds:.0f} s.")
    odd = [
        str(f) for findings in found.values() for f in findings if f.verdict == "not as expected"
    ]
    if odd:
        sections[0].blocks.append(Text(odd, is_list=True))
    sections += [Section(title, [_table(title, findings)]) for title, findings in found.items()]
    command = "kit doctor --quick" if form == "quick" else "kit doctor"
    return to_markdown("What kit doctor found", sections, Path(), command)


def _table(title: str, findings: list[Finding]) -> Table:
    rows = [[f.what, f.verdict, f.found, f.expected, f.why] for f in findings]
    return Table(title, "Findings", ("what", "verdict", "found", "expected", "why"), rows, Origin())
