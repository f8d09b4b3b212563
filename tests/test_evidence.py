"""docs/evidence.md says what the stored comparisons say, and README what that page says."""

import json
import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from rambo_det.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(ROOT / "tools" / "evidence.py"))


def test_the_page_is_what_the_tool_writes(tool):
    assert (ROOT / "docs/evidence.md").read_text() == tool["page"](tool["read"]())


def test_every_figure_of_the_page_is_there(tool, tmp_path, monkeypatch):
    page = (ROOT / "docs/evidence.md").read_text()
    named = set(re.findall(r"\(evidence/(\w+\.png)\)", page))
    assert named == {file.name for file in (ROOT / "docs/evidence").glob("*.png")}
    monkeypatch.setitem(tool["draw"].__globals__, "FIGURES", tmp_path)
    tool["draw"](tool["read"]())
    assert {file.name for file in tmp_path.iterdir()} == named


def test_what_is_stored_names_no_place_of_a_machine(tool):
    for file in (ROOT / "results/evidence").glob("*.json"):
        text = file.read_text()
        assert not re.search(r'"/|=/| /\w', text), file
        results = json.loads(text)
        assert results["command"].startswith("rambo-compare ")
        assert f"--out output/{file.stem} " in results["command"] + " "


def test_readmes_results_are_those_of_the_page():
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/evidence.md"))
    part = readme[readme.index("## Results") :].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    lines = page.splitlines()
    for row in rows:
        assert row in lines, row
    prose = " ".join(line for line in part.splitlines() if not line.startswith("|"))
    numbers = re.findall(r"[+−]?\d+\.\d(?: ± \d+\.\d)?", prose)
    assert len(numbers) > 5
    for number in numbers:
        assert number in page, number


def test_a_file_that_is_no_comparison_is_refused(tool, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    for name in ("x.json", "none.json"):
        with pytest.raises(InputError, match=f"{name} is no results.json"):
            tool["keep"]("x", tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_mean_of_the_sets_is_that_of_the_seeds_differences(tool):
    def comparison(differences, first=0):
        runs = []
        for data, values in differences.items():
            for seed, value in enumerate(values, first):
                for variant, ap in (("rambo", 40.0 + seed), ("ce_0.5", 40.0 + seed + value)):
                    run = {"data": data, "variant": variant, "seed": seed, "metrics": {"AP": ap}}
                    runs.append(run)
        return {"reference": "rambo", "data": dict.fromkeys(differences), "runs": runs}

    stored = {
        "a": comparison({"x": [1.0, 2.0], "y": [5.0, 5.0, 8.0]}),
        "b": comparison({"x": [3.0]}, first=2),
    }
    found = tool["pooled"](stored, "ce_0.5")
    # Means 2 and 6; squares 2 and 6 on 4 degrees of freedom, so a deviation of 2^(1/2); t is 2.776.
    half = 2.776 * 2**0.5 * (1 / 3 + 1 / 3) ** 0.5 / 2
    assert found["mean"] == pytest.approx(4.0)
    assert found["low"] == pytest.approx(4 - half, abs=0.02)
    assert found["high"] == pytest.approx(4 + half, abs=0.02)
    assert tool["on_set"](stored, "y", "ce_0.5") == "+6.0; 3"
    stored["c"] = comparison({"x": [9.0]}, first=1)  # a seed that another has: not taken twice
    assert tool["pooled"](stored, "ce_0.5") == found
    assert tool["pooled"](stored, "none", ["ce_0.5"]) is None
    half *= 2.306 / 2.776  # with another change of the same deviation, t of 8
    for results in (stored["a"], stored["b"]):
        others = [
            {**run, "variant": "beta_0"} for run in results["runs"] if run["variant"] != "rambo"
        ]
        results["runs"] += others
    wider = tool["pooled"](stored, "ce_0.5", ["beta_0"])
    assert wider["mean"] == pytest.approx(4.0)
    assert wider["high"] - 4 == pytest.approx(half, abs=0.02)
    stored["b"]["data"]["z"] = None  # a set on which it has not been trained
    assert tool["pooled"](stored, "ce_0.5") is None
