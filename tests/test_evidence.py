"""docs/evidence.md says what the stored comparisons say, and README what that page says."""

import json
import re
import runpy
import shlex
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
    kept = tool["keep"]("y", ROOT / "results/evidence/main.json", tmp_path)
    before = kept.read_text()
    seeds = ROOT / "results/evidence/seeds.json"
    with pytest.raises(InputError, match="y.json is there already: --overwrite"):
        tool["keep"]("y", seeds, tmp_path)
    assert kept.read_text() == before
    tool["keep"]("y", seeds, tmp_path, overwrite=True)
    assert kept.read_text() != before


def test_the_mean_of_the_sets_is_that_of_the_seeds_differences(tool):
    def comparison(differences, first=0, keys=(), name="ce_0.5"):
        runs = []
        for data, values in differences.items():
            for seed, value in enumerate(values, first):
                for variant, ap in (("rambo", 40.0 + seed), (name, 40.0 + seed + value)):
                    run = {"data": data, "variant": variant, "seed": seed, "metrics": {"AP": ap}}
                    runs.append(run)
        command = ["rambo-compare", "--config", "x.yaml"]
        command += [word for data in differences for word in ("--data", data)]
        opts = ["MODEL.RAMBO.CE_WEIGHT", "0.5"] if "ce_0.5" in name else ["MODEL.RAMBO.BETA", "0.0"]
        return {
            "command": " ".join([*command, *keys]), "reference": "rambo",
            "variants": {
                "rambo": {"loss": "rambo", "opts": []}, name: {"loss": "rambo", "opts": opts},
            },
            "data": dict.fromkeys(differences), "runs": runs,
        }  # fmt: skip

    def found(variant="ce_0.5"):
        return tool["mean_of_sets"](stored, "ablation", variant)

    stored = {
        "ablation_a": comparison({"x": [1.0, 2.0], "y": [5.0, 5.0, 8.0]}),
        "lambda_b": comparison({"x": [3.0]}, first=2, name="other_name_of_ce_0.5"),
    }
    first = found()
    # Means 2 and 6; squares 2 and 6 on 4 degrees of freedom, so a deviation of 2^(1/2); t is 2.776.
    half = 2.776 * 2**0.5 * (1 / 3 + 1 / 3) ** 0.5 / 2
    assert first["mean"] == pytest.approx(4.0)
    assert first["low"] == pytest.approx(4 - half, abs=0.02)
    assert first["high"] == pytest.approx(4 + half, abs=0.02)
    assert tool["on_set"](stored, stored["ablation_a"], "y", "ce_0.5") == "+6.0; 3"
    stored["ablation_c"] = comparison({"x": [9.0]}, first=1)  # a seed that another has
    stored["ablation_d"] = comparison({"x": [9.0]}, 3, ["MODEL.RAMBO.MARGIN", "1.0"])  # other keys
    assert found() == first
    stored["ablation_e"] = comparison({"x": [1.0, 2.0, 3.0], "y": [5.0, 5.0, 8.0]}, name="beta_0")
    half *= 2.306 / 2.776  # with another change of the same deviation, t of 8
    wider = found()
    assert wider["mean"] == pytest.approx(4.0)
    assert wider["high"] - 4 == pytest.approx(half, abs=0.02)
    stored["ablation_e"]["data"]["z"] = None  # a set on which it has not been trained
    assert found() is None


def test_a_training_that_several_comparisons_have_is_one(tool):
    """So that a seed's default may be taken from another comparison than its change."""
    stored = tool["read"]()
    frame = tool["frame_of"](stored["main"]["command"])
    known, data_of, twice = {}, {}, 0
    for name, results in stored.items():
        if tool["frame_of"](results["command"]) != frame:
            continue
        words = shlex.split(results["command"])
        for data in results["data"]:
            (spec,) = [word for word in words if word.startswith(f"{data}=")]
            assert data_of.setdefault(data, spec) == spec, name
        for run in results["runs"]:
            loss = tool["loss_of"](results, run["variant"])
            key = (run["data"], run["seed"], str(loss))
            ap = run["metrics"]["AP"]
            twice += key in known
            assert known.setdefault(key, ap) == pytest.approx(ap, abs=1e-9), (name, key)
    assert twice > 20
