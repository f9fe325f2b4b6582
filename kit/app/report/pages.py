"""Reports in the app's folders: find them, make them, and show their page without its scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from kit.app.library.folders import COMPARISON, Folder, find, find_runs
from kit.app.library.roots import confine
from kit.app.library.runs import read_run
from kit.errors import ResultsError

PAGE = "report.html"
LARGEST = 32 << 20  # bytes of a page that is shown
# whatever is in the page: pictures and styles of its own, nothing from anywhere else
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
DARK = "(prefers-color-scheme: dark)"


def find_reports(roots: Sequence[Path]) -> list[Folder]:
    """The folders of all reports, the newest first."""
    return sorted(find(roots, PAGE), key=lambda folder: -folder.changed)


def find_sources(roots: Sequence[Path]) -> list[Folder]:
    """What a report can be made of: comparisons, and runs that are not in one."""
    comparisons = find(roots, COMPARISON)
    inside = [folder.path for folder in comparisons]
    alone = [
        run
        for run in find_runs(roots)
        if not any(run.path.is_relative_to(comparison) for comparison in inside)
    ]
    return [*comparisons, *alone]


def locate(folder: str, roots: Sequence[Path]) -> Path:
    """The page of a report folder; OutsideRoots where it is in none of the roots."""
    return confine(str(Path(folder) / PAGE), roots)


def frame(page: Path, title: str) -> str:
    """An iframe that shows a page: no script, no form, no request, no way out of the frame.

    The page is shown light: a frame sees the system's colour scheme and not the app's, which can
    be another, so the app darkens the frame as a whole. Raises ResultsError when it cannot be read.
    """
    if not page.is_file():
        raise ResultsError(f"there is no report {page} any more; look for reports again")
    try:
        if page.stat().st_size > LARGEST:
            raise ResultsError(
                f"{page} has more than {LARGEST >> 20} MiB; open the file in a browser"
            )
        text = page.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ResultsError(f"cannot read the report {page}: {error.strerror}") from None
    head = (
        f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        # links to sections stay in the frame, where they would open the app in it
        '<base href="about:srcdoc">'
        "<style>:root { color-scheme: only light !important; }</style>"
    )
    text = text.replace(DARK, "not all")
    return (
        f'<iframe sandbox="" referrerpolicy="no-referrer" title="{html.escape(title)}" '
        f'srcdoc="{html.escape(head + text)}"></iframe>'
    )


def make_report(folders: Sequence[str], roots: Sequence[Path], into: Path) -> Path:
    """A report of run folders and comparisons, in a new folder of `into`; returns that folder.

    Raises ResultsError for nothing chosen or damaged runs, OutsideRoots for folders in none of
    the roots, and what kit.reports raises for runs that cannot be compared.
    """
    if not folders:
        raise ResultsError("choose at least one run or comparison to report on")
    paths = [confine(folder, roots) for folder in folders]
    for run in find_runs(paths):
        if faults := read_run(run.path).faults:
            raise ResultsError(f"{run.path}: {faults[0]}; mend it, or leave this run out")
    from kit.reports import report  # which matplotlib comes with

    folder = _new_folder(into, paths[0].name)
    try:
        return report(paths, folder)
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def _new_folder(into: Path, name: str) -> Path:
    """An empty folder that nobody had before."""
    try:
        into.mkdir(parents=True, exist_ok=True)
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        folder = next(into / name for name in names if not (into / name).exists())
        folder.mkdir()
    except OSError as error:
        raise ResultsError(f"cannot make a folder in {into}: {error.strerror}") from None
    return folder
