"""Building and installing the package: sdist, wheel, and the repairs of Detectron2 v0.6."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import get_detectron2
import pytest

from rambo_det.version import __version__

from .doc_pages import ROOT
from .forked import python


def run(command: list, folder: Path) -> str:
    """Runs the command, which must succeed, and returns what it prints."""
    without = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the wheel, built from an sdist of a copy, so that the clone gets no build folder."""
    pytest.importorskip("setuptools", reason="no wheel can be built without setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rambo_det", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    run([sys.executable, "-c", code], source)
    (sdist,) = out.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run([*pip, "-w", out, sdist], out)
    (path,) = out.glob("*.whl")
    return path


def test_what_the_wheel_carries(wheel: Path) -> None:
    """The wheel has every source and every config, the version and the commands."""
    kinds = {"rambo_det": {".py", ".cpp", ".jinja", ".typed"}, "configs": {".yaml", ".py"}}
    sources = [p for room, kind in kinds.items() for p in (ROOT / room).rglob("*")
               if p.suffix in kind]  # fmt: skip
    names = {p.relative_to(ROOT).as_posix() for p in sources}
    expected = {name if name.startswith("rambo") else f"rambo_det/{name}" for name in names}
    assert {"rambo_det/configs/quickstart/faster_rcnn_rambo.yaml", "rambo_det/py.typed"} < expected
    archive = zipfile.ZipFile(wheel)
    assert {n for n in archive.namelist() if n.startswith("rambo_det/")} == expected
    info = f"rambo_det-{__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata and "\nRequires-Python: >=3.10\n" in metadata
    scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert "rambo-train = rambo_det.cli.train:main" in scripts
    assert any(name.endswith("LICENSE") for name in archive.namelist())


def test_the_installed_wheel_works_outside_of_the_clone(wheel: Path, tmp_path: Path) -> None:
    """tools/smoke_test.py passes in an environment with the same packages but not this clone."""
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=False)
    installed = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", installed, "install", "--no-deps"]
    run([*pip, "--no-index", wheel], empty)
    own = run([installed, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], empty)
    # Adds this environment's packages by path alone, which leaves out an editable rambo_det.
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    others |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    Path(own.strip(), "others.pth").write_text("".join(f"{path}\n" for path in others))
    printed = run([installed, ROOT / "tools" / "smoke_test.py"], empty)
    assert f"rambo_det {__version__}" in printed or "the loss alone" in printed
    assert not list(empty.iterdir())


def test_the_version_is_in_one_place() -> None:
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    files += [*ROOT.glob("rambo_det/**/*.py"), ROOT / "mkdocs.yml", ROOT / "Dockerfile"]
    pattern = rf"(?<![\d.]){re.escape(__version__)}(?!\d)"
    holding = {f.name for f in files if re.search(pattern, f.read_text())}
    assert holding == {"version.py"}


OLD = (
    "a = Image.LINEAR\nb = x.astype(np.bool), np.int, np.float, np.object\nc = np.bool_, np.int64\n"
    "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
    "d = get_norm(norm, 1), get_norm(norm, 16)\nfrom .api import *\n"
)
NEW = (
    "a = Image.BILINEAR\nb = x.astype(bool), int, float, object\nc = np.bool_, np.int64\n"
    "from pycocotools.cocoeval import COCOeval as COCOeval_opt\n"
    "d = get_norm(norm, 32), get_norm(norm, 16)\n\n"
)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("sub/old.py", OLD, None),
        ("sub/old.py", OLD.replace("LINEAR", "BILINEAR"), "Image"),
        ("sub/old.py", OLD.splitlines()[0], "np"),
        ("sub/old.py", OLD.replace("_opt", ""), "COCOeval_opt"),
        ("sub/old.py", OLD.replace("norm, 1)", "norm, 2)"), "get_norm"),
        ("sub/old.py", OLD.replace(".api", ".apis"), "api"),
        ("_C.py", OLD, "_C already"),
    ],
)
def test_repairs_of_detectron2_v06(tmp_path: Path, name: str, text: str, error: str | None) -> None:
    """A repair that finds nothing to change raises an error: the sources are unexpected."""
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_text(text)
    if error:
        with pytest.raises(RuntimeError, match=error):
            get_detectron2.repair(tmp_path)
        return
    get_detectron2.repair(tmp_path)
    assert (tmp_path / name).read_text() == NEW
    compile((tmp_path / "_C.py").read_text(), "_C.py", "exec")


WITHOUT_DETECTRON2 = """
import importlib.util, sys
sys.modules["detectron2"] = None
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "detectron2" else found(name, *a)

import rambo_det
from rambo_det.data import drawing, shapes
rambo_det.RamboLoss(3)
drawing.SPEC["images"] = {"train": 1, "val": 1}
assert shapes.prepare_shapes().is_dir()
assert not hasattr(rambo_det, "foo")
try:
    rambo_det.add_rambo_config
except ImportError as error:
    assert "pip install" in str(error), error
else:
    raise SystemExit("no ImportError")
from rambo_det.cli.train import main
raise SystemExit(main(["--config", "x"]))
"""


def test_without_detectron2_the_loss_works_and_the_rest_names_the_remedy(tmp_path: Path) -> None:
    done = python("-c", WITHOUT_DETECTRON2, RAMBO_DET_CACHE=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Detectron2 is not installed: pip install")


def test_an_existing_environment_needs_the_tests_tools_for_tests_alone(tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('pytest', 'hypothesis') else found(n, *a)\n"
    )
    hiding = tmp_path / "python"
    hiding.write_text(
        f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n'
    )
    hiding.chmod(0o755)

    def make(target: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = ["make", target, f"PYTHON={hiding}", *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    trained = make("train", "ARGS=--help")
    assert trained.returncode == 0 and "--register-coco" in trained.stdout, trained.stderr
    for target in ("test", "torture", "matrix"):
        refused = make(target)
        assert refused.returncode != 0 and "cannot import pytest, hypothesis" in refused.stderr


def test_continuous_integration_sums_up_though_a_set_up_fails(tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\n[ "$1" = clean ] || { echo no network; exit 1; }\n')
    make.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci" / "run"], env=env, capture_output=True, text=True)
    end = done.stdout[done.stdout.index("=== what was run and what was skipped") :]
    assert done.returncode == 1 and "FAILED" in end and "make test PYTHON=python3" in end
