"""README and docs/ are true: their snippets run, their commands work, the pages build."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg

import rambo_det
from rambo_det.engine.setup import flat_config

from .doc_pages import DOCS, PAGES, ROOT, blocks, commands, text_of
from .forked import python
from .models import EXTRA, write_coco, write_voc

# The pages train a real project's model. The tests train a small model for two iterations.
SHORT = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18", "SOLVER.MAX_ITER", "2",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "(1,)",
    "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.001", "SEED", "1",
]  # fmt: skip
# The quickstart's dataset is reduced to four images per split.
IMAGES, FEW_IMAGES = '"images": {"train": 800, "val": 250}', '"images": {"train": 4, "val": 4}'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Returns a copy of the repository with few images to draw and with the pages' data."""
    for name in ("tools", "configs", "rambo_det"):
        shutil.copytree(ROOT / name, tmp_path / name)
    drawing = tmp_path / "rambo_det" / "data" / "drawing.py"
    assert IMAGES in text_of(drawing)
    drawing.write_text(text_of(drawing).replace(IMAGES, FEW_IMAGES), encoding="utf-8")
    for split in ("train", "val"):
        file, images = write_coco(tmp_path / "drawn", 4, split)
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.move(images, tmp_path / "images" / split)
        shutil.move(file, tmp_path / f"{split}.json")
        objects = {f"{split}{i}": [("cat", (5, 5, 30, 30), 0), ("dog", (20, 10, 50, 45), 0)]
                   for i in range(3)}  # fmt: skip
        root = write_voc(tmp_path / "voc", split, objects, extra=EXTRA)
        as_roboflow = tmp_path / "export" / {"val": "valid"}.get(split, split)
        shutil.copytree(tmp_path / "images" / split, as_roboflow)
        shutil.copy(tmp_path / f"{split}.json", as_roboflow / "_annotations.coco.json")
        shutil.copytree(root / "JPEGImages", tmp_path / split / "images", dirs_exist_ok=True)
        (tmp_path / split / "labels").mkdir()
        for image in root.glob(f"JPEGImages/{split}*"):
            text = "0 0.3 0.4 0.4 0.5\n1 0.6 0.6 0.5 0.6\n"
            (tmp_path / split / "labels" / f"{image.stem}.txt").write_text(text)
    (tmp_path / "data.yaml").write_text("train: train/images\nval: val/images\nnames: [cat, dog]")
    shutil.copytree(root / "Annotations", tmp_path / "photos")
    shutil.copytree(root / "JPEGImages", tmp_path / "photos", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAGES_WITH_CODE = [page for page in PAGES if commands(page) or blocks(page, "python")]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.stem)
def test_commands_and_python_work(page, project, catalogs):
    """Every command in a page's ``sh`` blocks succeeds, in order, in one folder.

    Then the page's Python runs there, in one scope. The README's needs a project's ``cfg``.
    """
    env = {**os.environ, "PYTHONPATH": str(project), "RAMBO_DET_CACHE": str(project / "cache")}
    env.update(OMP_NUM_THREADS="1", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    launchers = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}
    for command in commands(page):
        words = shlex.split(command)
        words[:1] = [sys.executable, *launchers[words[0]]]
        trains = "tools/train_net.py" in words and "--check-data" not in words
        words += SHORT if trains else []
        done = subprocess.run(words, cwd=project, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert not trains or {"AP50", "checkpoint:"} <= set(done.stdout.split()), command
    scope = {"cfg": get_cfg()} if page.name == "README.md" else {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), scope)


def test_every_key_has_a_comment_right_above_it():
    """rambo_det/config.py is the reference of all keys."""
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    added = flat_config(cfg).keys() - flat_config(get_cfg()).keys()
    names = sorted(key.rpartition(".")[2] for key in added)
    source = text_of(ROOT / "rambo_det" / "config.py")
    explained = re.findall(r"^ +# .{20,}\n(?: +#.*\n)*? +\w+\.([A-Z_]+) = (?!CN)", source, re.M)
    assert sorted(explained) == names and "MARGIN" in names


def test_the_documentation_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: requirements.txt has it")
    site = tmp_path / "site"
    done = python("-m", "mkdocs", "build", "--strict", "-d", site)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {path.stem for path in site.glob("docs/*.html")}
    assert pages == {"keys", *(path.stem for path in DOCS.glob("*.md"))}
    assert {"index", "CONTRIBUTING", "CHANGELOG"} <= {path.stem for path in site.glob("*.html")}
    assert "MARGIN" in (site / "docs/keys.html").read_text()
    for page in (*site.glob("*.html"), *site.glob("docs/*.html")):  # every link has a target
        for link in re.findall(r'(?:href|src)="(?!\w+:|/)([^"#?]+)', page.read_text()):
            assert (page.parent / link).exists() or page.name == "404.html", f"{page.name}: {link}"


def test_the_table_of_versions_is_that_of_the_results():
    done = python("tools/check_versions.py", "--table")
    assert done.stdout.count("| passed |") == done.stdout.count("\n") - 2 > 0
    assert done.stdout in text_of(DOCS / "versions.md")


@pytest.mark.parametrize("file", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda file: file.name)
def test_a_notebook_runs_from_top_to_bottom(file, tmp_path, monkeypatch):
    reason = "nbclient or ipykernel is not installed: requirements.txt has them"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    import nbformat

    for name, value in {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAMBO_DET_ITERATIONS": "4",
        "RAMBO_DET_IMAGES": "4",
        "RAMBO_DET_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = "".join(o.get("text", "") for cell in code for o in cell.outputs)
    assert "step 400: loss 0.000" in printed and "AP50" in printed
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
