"""README and docs/ are true: their snippets run, their commands work, the pages build."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg

import rambo_det

from .doc_pages import DOCS, PAGES, ROOT, blocks, commands, load_tool, text_of
from .models import write_coco
from .voc_folder import EXTRA, write_voc

# A training in the pages is that of a real project; here it is a small model and two iterations.
SHORT = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18", "SOLVER.MAX_ITER", "2",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "(1,)",
    "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.001", "SEED", "1",
]  # fmt: skip
config_keys, keys_page = (getattr(load_tool("docs_pages"), n) for n in ("config_keys", "keys_page"))
SHOWN = [p for p in PAGES if blocks(p, "python")]
RUN = [p for p in PAGES if commands(p)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache whose drawn data set is a few images under the name of all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the clone's tools and configs and with the data that the pages name."""
    for name in ("tools", "configs", "rambo_det"):
        (tmp_path / name).symlink_to(ROOT / name)
    for split in ("train", "val"):
        file, images = write_coco(tmp_path / "drawn", 4, split)
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.move(images, tmp_path / "images" / split)
        shutil.move(file, tmp_path / f"{split}.json")
        objects = {f"{split}{i}": [("cat", (5, 5, 30, 30), 0), ("dog", (20, 10, 50, 45), 0)]
                   for i in range(3)}  # fmt: skip
        write_voc(tmp_path / "voc", split, objects, extra=EXTRA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.stem)
def test_python_runs(page, project, catalogs):
    """The Python of a page, in order, in one scope; the README's is to go into a project's own."""
    scope = {"cfg": get_cfg()} if page.name == "README.md" else {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), scope)


def few_shapes(folder):
    """The quickstart's data set, in a cache of its own, cut down to four images a split."""
    from rambo_det.data.shapes import _MARKER, _sizes, shapes_folder

    os.environ["RAMBO_DET_CACHE"] = str(folder)
    try:
        shapes = shapes_folder()
    finally:
        del os.environ["RAMBO_DET_CACHE"]
    if not shapes.is_dir():
        for split in ("train", "val"):
            write_coco(shapes, 4, split)
        (shapes / _MARKER).write_text(json.dumps(_sizes(shapes)))


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_commands_work(page, project, cache):
    """Every command of a page marked sh, in order, in one folder."""
    few_shapes(cache)
    env = {**os.environ, "PYTHONPATH": str(project), "RAMBO_DET_CACHE": str(cache)}
    env.update(OMP_NUM_THREADS="1", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "python":
            words[0] = sys.executable
        if words[0] == "torchrun":
            words[:1] = [sys.executable, "-m", "torch.distributed.run"]
        if "tools/train_net.py" in words:
            words += SHORT
        done = subprocess.run(words, cwd=project, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if "tools/train_net.py" in words:
            assert "AP50" in done.stdout and "checkpoint: " in done.stdout, command


def leaves(node, path=""):
    """Every key of a config by its whole name."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def test_the_page_of_keys_is_that_of_the_config():
    cfg = get_cfg()
    before = set(dict(leaves(cfg)))
    rambo_det.add_rambo_config(cfg)
    added = {key: value for key, value in leaves(cfg) if key not in before}
    source = (ROOT / "rambo_det" / "config.py").read_text()
    keys = {f"{key.node}.{key.name}": key for key in config_keys(source) if key.default != "CN()"}
    assert set(keys) == set(added) and "MODEL.RAMBO.MARGIN" in keys
    page = keys_page(source)
    assert set(re.findall(r"^`([\w.]+)`, by default `", page, re.M)) == set(added)
    for name, value in added.items():
        assert eval(keys[name].default) == value
        assert len(keys[name].comment) > 20 and keys[name].comment in page
        assert f"`{name}`, by default `{keys[name].default}`" in page


def test_a_key_has_the_comment_that_is_right_above_it():
    source = (
        "# not this\ncfg.A.B = CN()\nx = cfg.A.B\n# First\n# line.\nx.A = (1,  # nor this\n  2)\n"
        "x.B = 1\n\n# far\n\nx.C = 'x'  # nor that\n# of C\ncfg.C = CN()\ny = cfg.C\ny.D = 2\n"
    )
    assert config_keys(source) == [
        ("A", "B", "CN()", "not this"), ("A.B", "A", "(1, 2)", "First line."),
        ("A.B", "B", "1", ""), ("A.B", "C", "'x'", ""), ("", "C", "CN()", "of C"),
        ("C", "D", "2", ""),
    ]  # fmt: skip


def test_the_documentation_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: requirements.txt has it")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {path.stem for path in site.glob("*.html")} - {"404", "search"}
    added = {"keys", "contributing", "changelog"}
    assert pages == added | {path.stem for path in DOCS.glob("*.md")}
    assert "MODEL.RAMBO.MARGIN" in (site / "keys.html").read_text()
    assert (site / "files/configs/faster_rcnn_rambo.yaml").is_file()
    for page in site.glob("*.html"):  # what pages of the site link to is in the site
        for link in re.findall(r'href="(?!\w+:|/)([^"#]+)', page.read_text()):
            assert (site / link).exists(), f"{page.name}: {link}"


def test_links_of_the_repository_exist():
    for page in PAGES:
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text_of(page)):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_table_of_versions_is_that_of_the_results():
    command = [sys.executable, "tools/check_versions.py", "--table"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("| passed |") == done.stdout.count("\n") - 2 > 0
    assert done.stdout in text_of(DOCS / "versions.md")
