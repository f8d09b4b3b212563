"""docs/evidence.md agrees with the stored rows, and README with docs/evidence.md."""

import json
import re
import shlex
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("detectron2")

import evidence

from rambo_det.cli.compare import parse_args
from rambo_det.compare.text import format_number, format_value
from rambo_det.errors import InputError

from .doc_pages import DOCS, ROOT, text_of
from .models import THIN, write_coco

ROWS = json.loads((ROOT / "results/evidence.json").read_text())
PAGE = text_of(DOCS / "evidence.md")


def without_tables(text):
    """Returns the prose of a page, without tables, code in backticks and link targets."""
    lines = [line for line in text.splitlines() if not line.startswith(("|", "<!--"))]
    return re.sub(r"`[^`]*`|\]\([^)]*\)|```.*?```", "", "\n".join(lines), flags=re.S)


def test_the_tables_are_what_the_tool_writes():
    assert PAGE.count("<!-- table: ") > 10
    emptied = re.sub(r"^\|.*\n", "", PAGE, flags=re.M)
    assert evidence.page(ROWS, emptied) == PAGE
    assert evidence.as_json(ROWS) == (ROOT / "results/evidence.json").read_text()


def test_the_derived_rows_are_what_the_tool_derives():
    for name in evidence.DERIVED:
        for kind, rows in evidence.derive(ROWS, name).items():
            assert rows == [row for row in ROWS[kind] if row["of"] == name] != []


def test_every_number_of_the_page_is_in_a_row():
    told = {format_number(row[key]) for row in ROWS["lowest class"] for key in ("AP", "focal loss")}
    for row in ROWS["losses"] + ROWS["differences"]:
        for values in (row[key] for key in row if isinstance(row[key], list) and key[0].isupper()):
            told |= {format_number(value) for value in values}
            told |= {format_number(abs(values[0])), f"+{format_number(values[0])}"}
            names = ("mean", "low", "high") if len(values) == 3 else ("mean", "std")
            if len(values) == len(names):
                told.add(format_value(dict(zip(names, values, strict=True))))
    for row in ROWS["losses"]:
        told |= {format_number(ap) for aps in row.get("AP at", {}).values() for ap in aps}
    with_classes = {row["of"] for row in ROWS["losses"] if "classes" in row}
    for name in with_classes - {row["of"] for row in ROWS["losses"] if "classes" not in row}:
        cells = {cell for line in evidence.classes_table(ROWS, [name])[1:] for cell in line[3:]}
        told |= cells | {cell.partition(" ")[0] for cell in cells}
    settings = {"0.5", "0.2", "0.4", "0.03", "0.3", "0.7", "20.0"}  # keys' values, two differences
    pattern = r"[+−]?\d+\.\d+(?: ± \d+\.\d+| \([+−]?\d+\.\d+ … [+−]?\d+\.\d+\))?"
    found = [n for n in re.findall(pattern, without_tables(PAGE)) if n not in settings]
    assert len(found) > 15
    for text in found:
        assert text in told or text in ("0.01", "0.02", "0.04", "0.08"), text


def test_every_comparison_is_named_and_its_command_is_one():
    for about in ROWS["comparisons"]:
        assert f"`{about['name']}`" in PAGE, about["name"]
        program, *words = shlex.split(about["command"])
        assert program == "rambo-compare"
        args = parse_args(words)
        assert args.out == Path("output", about["name"])
        assert about["torch"] and about["detectron2"] and about["device"]
        assert not re.search(r"(^|[ :=])/", about["command"]), "a place of a machine"
    names = {about["name"] for about in ROWS["comparisons"]}
    of = {row["of"] for row in ROWS["losses"] + ROWS["differences"]}
    assert of == names | set(evidence.DERIVED)


def test_the_rows_are_those_of_their_seeds():
    """Means and deviations, and the differences over the same seeds, follow from the seeds."""
    known = {}
    for row in ROWS["losses"]:
        for metric in ("AP", "AP50", "AP75"):
            if found := row.get(f"{metric} of seeds"):
                key = (row["of"], row["data"], row["title"], metric)
                known[key] = dict(zip(row["seeds"], found, strict=True))
                assert row[metric][0] == pytest.approx(statistics.mean(found), abs=2e-4)
                if len(found) > 1:
                    assert row[metric][1] == pytest.approx(statistics.stdev(found), abs=2e-4)
    checked = 0
    for row in ROWS["differences"]:
        for metric in (metric for metric in ("AP", "AP50", "AP75") if metric in row):
            titles = (row["loss"], row["less"])
            one, other = (known.get((row["of"], row["data"], title, metric)) for title in titles)
            mean, low, high = row[metric]
            if one and other:
                of_seeds = (one[seed] - other[seed] for seed in row["seeds"])
                assert mean == pytest.approx(statistics.mean(of_seeds), abs=2e-4)
                checked += 1
            assert low is None or low <= mean <= high
    assert checked > 40


def test_readmes_results_are_those_of_the_page():
    readme = (ROOT / "README.md").read_text()
    part = readme[readme.index("## Results") :].partition("\n## ")[0]
    figure = r"[+−]?\d+\.\d(?: ± \d+\.\d)?"
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    rows = [re.findall(figure, line) for line in part.splitlines() if line.startswith("|")]
    rows = [row for row in rows if row]
    assert len(rows) > 2
    # The page shows a comparison in three rows: both losses and their difference.
    groups = ["".join(lines[i : i + 3]) for i in range(len(lines))]
    for row in rows:
        assert any(all(text in group for text in row) for group in groups), row
    for text in re.findall(r"[+−]?\d+\.\d(?: ± \d+\.\d)?", without_tables(part)):
        assert text in PAGE, text


def test_the_figures_of_the_page_are_drawn(tmp_path):
    named = set(re.findall(r"\(evidence/(\w+)\.png\)", PAGE))
    assert named == set(evidence.FIGURES)
    assert named == {file.stem for file in (ROOT / "docs/evidence").iterdir()}
    for name in evidence.FIGURES:
        evidence.draw(ROWS, name, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_protocol_names_comparisons_that_can_be_made():
    assert not evidence.PROTOCOL.keys() & {row["name"] for row in ROWS["comparisons"]}
    asked = {name: found for name, found in evidence.known(ROWS).items() if found[0]}
    assert asked.keys() > evidence.PROTOCOL.keys()
    for question, command in asked.values():
        args = parse_args(shlex.split(command))
        assert question[-1] in ".?"
        per_loss = Counter(text.partition("_")[0] for text in args.variant)
        fewest = min(per_loss.values(), default=0)
        assert per_loss["rambo"] <= fewest, "RaMBO has more settings than another loss"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Moves the tool's files to a temporary folder and returns their paths."""
    names = {"ROWS": tmp_path / "rows.json", "PAGE": tmp_path / "page.md", "PICTURES": tmp_path}
    for name, path in names.items():
        monkeypatch.setattr(evidence, name, path)
    names["ROWS"].write_text(evidence.as_json(ROWS))
    names["PAGE"].write_text("What?\n\n<!-- table: results new -->\n\nThat.\n")
    return names


def test_a_comparison_of_the_protocol_is_made(elsewhere, tmp_path, monkeypatch, catalogs):
    """Its rows replace those of an earlier comparison of the same name."""
    monkeypatch.chdir(tmp_path)
    earlier = json.loads(elsewhere["ROWS"].read_text())
    for kind, key in (("comparisons", "name"), ("losses", "of")):
        earlier[kind].append({**earlier[kind][-1], key: "new"})
    elsewhere["ROWS"].write_text(evidence.as_json(earlier))
    files = [Path(*write_coco(Path(split), 4, split)[:1]).parent for split in ("train", "val")]
    data = ":".join(f"{f}/{s}.json:{f}/{s}" for f, s in zip(files, ("train", "val"), strict=True))
    command = [
        "--config", str(ROOT / "configs/quickstart/faster_rcnn_ce.yaml"), "--seeds", "1",
        "--threads", "1", "--data", f"x=coco:{data}", "--losses", "rambo", "--bootstrap", "100",
        *THIN, "SOLVER.MAX_ITER", "1",
    ]  # fmt: skip
    monkeypatch.setitem(evidence.PROTOCOL, "new", ("Which?", shlex.join(command)))
    evidence.run(["--run", "new"])
    rows = json.loads(elsewhere["ROWS"].read_text())
    assert [row["title"] for row in rows["losses"] if row["of"] == "new"] == ["RaMBO"]
    assert rows["comparisons"][-1]["question"] == "Which?"
    assert "| x | RaMBO | 1 |" in elsewhere["PAGE"].read_text()
    with pytest.raises(InputError, match="--run nothing: no such comparison, but main"):
        evidence.run(["--run", "nothing"])
    with pytest.raises(InputError, match="--run place_bccd: it needs older keys or defaults"):
        evidence.run(["--run", "place_bccd"])


def test_an_interval_of_means_and_deviations_is_welchs():
    less, more = [60.0, 64.0, 61.0], [70.0, 72.0, 78.0]
    found = evidence.unpaired(*([np.mean(x), np.std(x, ddof=1)] for x in (less, more)), 3)
    interval = stats.ttest_ind(more, less, equal_var=False).confidence_interval()
    np.testing.assert_allclose(found, [np.mean(more) - np.mean(less), *interval], atol=1e-4)
    assert evidence.unpaired([60.0, None], [70.0, 1.0], 1) == [10.0, None, None]


def test_a_comparison_is_added_once(elsewhere, tmp_path, monkeypatch):
    names = elsewhere
    aps = {("ce", 0): 30.0, ("ce", 1): 32.0, ("rambo", 0): 35.0, ("rambo", 1): 36.0}
    ce, rambo = {"mean": 31.0, "std": 1.41421}, {"mean": 35.5, "std": 0.70711}
    less = {"mean": 4.5, "low": -1.0, "high": 9.0}
    titles = {"ce": "cross entropy", "rambo": "RaMBO"}
    results = {
        "command": "rambo-compare --config c.yaml --out /tmp/x", "reference": "ce",
        "runs": [{"data": "x", "variant": variant, "seed": seed,
                  "metrics": {"AP": ap, "AP50": 2 * ap, "AP-a": ap, "AP-b": None,
                              "AP-c": ap / 2, "AP-d": 60 + ap},
                  "status": "finished", "evaluations": [{"iteration": 5, "AP": ap - 9 - seed},
                                                        {"iteration": 10, "AP": ap}]}
                 for (variant, seed), ap in aps.items()],
        "versions": {"torch": "2.4", "detectron2": "0.6", "device": "cpu", "rambo_det": "0.1"},
        "variants": {k: {"loss": k, "opts": [], "title": t} for k, t in titles.items()},
        "data": {"x": {"classes": ["a", "b", "c", "d"], "boxes": [2, 0, 9, 5]} | {
            kind: {name: {"seeds": [0, 1], "metrics": {"AP": ap, "AP50": ap}}
                   for name, ap in found.items()}
            for kind, found in (("losses", {"ce": ce, "rambo": rambo}),
                                ("differences", {"rambo": less}))
        }},
    }  # fmt: skip
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    evidence.run(["--add", f"new={file}"])
    page = names["PAGE"].read_text()
    assert "| x | cross entropy | 2 | 31.0 ± 1.4 | 31.0 ± 1.4 |\n" in page
    cells = 2 * " +4.5 (−1.0 … 9.0) |"
    assert f"|  | RaMBO less cross entropy | 2 |{cells}\n\nThat." in page
    kept = names["ROWS"].read_text()
    assert "--out output/new" in kept and "/tmp/x" not in kept
    both = (("one", {"new": "ce"}), ("other", {"new": "rambo"}))
    monkeypatch.setitem(evidence.DERIVED, "both", both)
    made = evidence.derive(json.loads(kept), "both")
    assert [row["AP50 of seeds"] for row in made["losses"]] == [[60.0, 64.0], [70.0, 72.0]]
    (difference,) = made["differences"]
    for metric, pairs in (
        ("AP", ([30.0, 32.0], [35.0, 36.0])),
        ("AP50", ([60.0, 64.0], [70.0, 72.0])),
    ):
        sides = [[np.mean(x), np.std(x, ddof=1)] for x in pairs]
        assert difference[metric] == pytest.approx(evidence.unpaired(*sides, 2), abs=2e-3)
    half, gain = "+2.2 (−0.9 … 5.4)", "+4.5 (−1.9 … 10.9)"
    assert evidence.classes_table(json.loads(kept), ["new"])[1] == [
        "x", "RaMBO less cross entropy", "3", gain, gain, half, half, gain, gain
    ]  # fmt: skip
    evidence.draw(json.loads(kept), "new", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    with pytest.raises(InputError, match="there is a comparison of that name"):
        evidence.run(["--add", f"new={file}"])
    for text in ("{}", "no json"):
        file.write_text(text)
        with pytest.raises(InputError, match="no results.json of a comparison"):
            evidence.run(["--add", f"other={file}"])
    assert names["ROWS"].read_text() == kept
    for part in [*results["runs"], *results["data"]["x"]["losses"].values()]:
        part |= {"seed": part["seed"] + 2} if "seed" in part else {"seeds": [2, 3]}
    results["data"]["x"]["differences"]["rambo"]["seeds"] = [2, 3]
    file.write_text(json.dumps(results))
    sides = [(loss, dict.fromkeys(("new", "newer"), loss)) for loss in titles]
    monkeypatch.setitem(evidence.DERIVED, "both", (sides[0], sides[1]))
    evidence.run(["--add", f"newer={file}"])
    joined = [r for r in json.loads(names["ROWS"].read_text())["losses"] if r["of"] == "both"]
    assert [len(row["AP at"]["10"]) for row in joined] == [4, 4]
