"""The packages the kit computes with, against those it is tested with."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from kit import packages
from kit.doctor.findings import Finding, judged, measured
from kit.doctor.patient import Patient

# those that compute or load; of all others one line says which are out of range
SHOWN = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "datasets")


def versions(_: Patient) -> Iterator[Finding]:
    """Python, each package that computes, and the rest together."""
    yield measured("Python", f"{platform.python_version()} on {platform.system()}")
    there, tested = packages.installed(), packages.tested()
    accepted = {packages.canonical(one.name): one.specifier for one in packages.required()}
    lacking = []
    for name in dict.fromkeys((*SHOWN, *accepted)):
        here = there.get(name)
        fits = here is not None and (
            name not in accepted or accepted[name].contains(here, prereleases=True)
        )
        if name in SHOWN:
            is_tested = here is not None and here.partition("+")[0] == tested[name]
            yield judged(
                name,
                fits,
                f"{here or 'missing'}, {'as tested' if is_tested else 'not the tested one'}",
                f"{tested[name]}, which is tested; accepted: {accepted.get(name) or 'any'}",
                "" if fits else f"pip install '{name}=={tested[name]}'",
                version=here,
                tested=tested[name],
            )
        elif not fits:
            lacking.append(f"{name} {here or 'missing'} (accepted: {accepted[name]})")
    yield judged(
        "all other packages",
        not lacking,
        "; ".join(lacking) or "within the accepted ranges",
        "within the ranges of requirements.txt",
        "pip install -c constraints.txt -r requirements.txt" if lacking else "",
    )
