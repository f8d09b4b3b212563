"""The package as it is built and installed: sdist, wheel, and the repairs of Detectron2 v0.6."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from rambo_det.version import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, which is built from a copy: no build folder in the clone."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed in this environment: no wheel can be built")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rambo_det", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    run([sys.executable, "-c", code], source)
    (sdist,) = out.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run([*pip, "-w", out, sdist], out)
    (path,) = out.glob("*.whl")
    return path


def run(command: list, folder: Path) -> str:
    """What the command prints; it must succeed."""
    without = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built)


def test_wheel_carries_every_source_and_config_file(wheel: zipfile.ZipFile) -> None:
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "rambo_det").rglob("*.py")}
    configs = [p for p in (ROOT / "configs").rglob("*") if p.suffix in {".yaml", ".py"}]
    assert configs
    expected |= {f"rambo_det/{p.relative_to(ROOT).as_posix()}" for p in configs}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "rambo_det").rglob("*.cpp")}
    expected |= {"rambo_det/py.typed", "rambo_det/compare/report.html.jinja"}
    assert {n for n in wheel.namelist() if n.startswith("rambo_det/")} == expected


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    info = f"rambo_det-{__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nRequires-Python: >=3.10\n" in metadata
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "rambo-train = rambo_det.cli.train:main" in entry_points
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_the_installed_wheel_works_outside_of_the_clone(built: Path, tmp_path: Path) -> None:
    """In an environment that has what this one has, but not this clone: see tools/smoke_test.py."""
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run([*pip, built], empty)
    own = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], empty))
    # The packages of this environment; as a path alone, which leaves out an editable rambo_det.
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    others |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    Path(str(own).strip(), "others.pth").write_text("".join(f"{path}\n" for path in others))
    printed = run([python, ROOT / "tools" / "smoke_test.py"], empty)
    assert f"rambo_det {__version__}" in printed or "the loss alone" in printed
    assert not list(empty.iterdir())


def test_the_version_is_in_one_place() -> None:
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    files += [*ROOT.glob("rambo_det/**/*.py"), ROOT / "mkdocs.yml", ROOT / "Dockerfile"]
    holding = {f.name for f in files if re.search(rf"(?<![\d.]){__version__}(?!\d)", f.read_text())}
    assert holding == {"version.py"}


@pytest.fixture
def get_detectron2() -> ModuleType:
    path = ROOT / "tools" / "get_detectron2.py"
    spec = importlib.util.spec_from_file_location("get_detectron2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_repairs_of_detectron2_v06(get_detectron2: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old.py").write_text(OLD)
    get_detectron2.repair(tmp_path)
    assert (tmp_path / "sub" / "old.py").read_text() == NEW
    compile((tmp_path / "_C.py").read_text(), "_C.py", "exec")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("old.py", OLD.replace("LINEAR", "BILINEAR"), "Image"),
        ("old.py", OLD.splitlines()[0], "np"),
        ("old.py", OLD.replace("_opt", ""), "COCOeval_opt"),
        ("old.py", OLD.replace("norm, 1)", "norm, 2)"), "get_norm"),
        ("old.py", OLD.replace(".api", ".apis"), "api"),
        ("_C.py", OLD, "_C already"),
    ],
)
def test_a_repair_with_nothing_to_repair_is_an_error(
    get_detectron2: ModuleType, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RuntimeError, match=message):
        get_detectron2.repair(tmp_path)


def test_an_existing_environment_needs_the_tests_tools_for_tests_alone(tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('pytest', 'hypothesis') else found(n, *a)\n"
    )
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)

    def make(target: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = ["make", target, f"PYTHON={python}", *more]
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
