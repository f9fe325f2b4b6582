"""The pictures of the trust regions, and the table and the page that go with them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kit.cli import main
from kit.config import CFPO, DPPOTV, TRUST_REGION_SETTINGS, Clip
from kit.regions import markdown
from kit.training.region_plots import draw, factors, looks_at_probabilities

DOCS = Path(__file__).parents[2] / "docs"


def test_factors_are_the_gradient_per_advantage():
    clip = Clip(name="clip")
    assert factors(clip, [0.5, 1.0, 2.0], 1.0, 0.1) == pytest.approx([0.5, 1.0, 0.0])
    assert factors(clip, [0.5, 1.0, 2.0], -1.0, 0.1) == pytest.approx([0.0, 1.0, 2.0])
    # 1.2 is the top of the parabola; 1.4 (1 - 0.4 / 0.2) beyond it, whatever the size of A
    cfpo = CFPO(name="cfpo")
    assert factors(cfpo, [1.2, 1.4], 3.0, 0.1) == pytest.approx([0.0, -1.4], abs=1e-9)
    # 0.5 -> 0.75 is too far, 0.05 -> 0.075 is not
    tv = DPPOTV(name="dppo_tv")
    assert factors(tv, [1.5], 1.0, 0.5) == [0.0]
    assert factors(tv, [1.5], 1.0, 0.05) == pytest.approx([1.5])


def test_regions_that_look_at_probabilities():
    looking = {
        name
        for name, settings in TRUST_REGION_SETTINGS.items()
        if looks_at_probabilities(settings.model_validate({"name": name}))
    }
    assert looking == {"dppo_tv", "dppo_kl", "ipo"}


def test_a_picture_is_small_and_says_what_its_lines_are():
    drawn = draw(DPPOTV(name="dppo_tv"))
    assert len(drawn.encode()) <= 20_000
    texts = [text.strip() for text in ElementTree.fromstring(drawn).itertext() if text.strip()]
    assert "dppo_tv" in texts and "r" in texts
    for sign in "><":
        for old in ("0.05", "0.5", "0.9"):
            assert f"A {sign} 0, π_old = {old}" in texts
    assert draw(DPPOTV(name="dppo_tv")) == drawn
    assert draw(DPPOTV(name="dppo_tv", delta_high=0.1)) != drawn


def test_kit_regions_prints_the_table_and_draws(tmp_path, capsys):
    assert main(["regions", "--plot", str(tmp_path / "new" / "figures")]) == 0
    said = capsys.readouterr().out
    assert all(f"│ {name} " in said for name in TRUST_REGION_SETTINGS)
    assert "epsilon_max=5" in said and "2602.04879" in said
    drawn = {path.stem for path in (tmp_path / "new" / "figures").glob("*.svg")}
    assert drawn == set(TRUST_REGION_SETTINGS)


def test_figures_have_no_place_in_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["regions", "--plot", str(tmp_path / "file")]) == 1
    assert "file: File exists; choose another folder" in capsys.readouterr().err


def test_the_table_needs_no_torch():
    code = (
        "import sys; from kit.cli import main; main(['regions']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=DOCS.parent, capture_output=True)
    assert done.returncode == 0 and b"dppo_kl" in done.stdout


# --- the page ------------------------------------------------------------------------------------


def page() -> str:
    return (DOCS / "trust-regions.md").read_text(encoding="utf-8")


def test_the_pages_table_is_the_codes():
    _, _, rest = page().partition("<!-- table: kit regions -->\n\n")
    assert rest.partition("\n\n<!-- end of table -->")[0] == markdown()


def test_the_page_has_a_section_and_a_picture_of_each():
    sections = re.findall(r"^### (\w+)\n\n!\[.*\]\(images/regions/(\w+)\.svg\)$", page(), re.M)
    assert sections == [(name, name) for name in TRUST_REGION_SETTINGS]


def lines_of(svg: str) -> list[list[float]]:
    """The coordinates of every line."""
    paths = re.findall(r' d="([^"]*)"', svg)
    return [[float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", d)] for d in paths]


@pytest.mark.parametrize("name", TRUST_REGION_SETTINGS)
def test_the_pages_pictures_are_the_codes(name):
    path = DOCS / "images" / "regions" / f"{name}.svg"
    kept = path.read_text(encoding="utf-8")
    assert len(kept.encode()) <= 20_000
    now = draw(TRUST_REGION_SETTINGS[name].model_validate({"name": name}))
    # in points of 1/72 inch; other versions of matplotlib may place the axes elsewhere by less
    got, expected = lines_of(now), lines_of(kept)
    assert [len(line) for line in got] == [len(line) for line in expected]
    for line, other in zip(got, expected, strict=True):
        assert line == pytest.approx(other, abs=1.0)
