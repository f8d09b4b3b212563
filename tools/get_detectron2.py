"""Installs Detectron2 into the Python that runs this file; prints which version it is and why.

Keeps a Detectron2 that is installed. Else installs the official repository at a pinned commit or,
if that cannot be reached or built, the v0.6 release from the package index, repaired for current
releases of torch, Pillow and NumPy. requirements.txt must be installed. Standard library only.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata, util
from pathlib import Path

REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
SDIST = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
V06 = f"v0.6 sources from the package index ({SDIST}, sha256 checked, repaired)"
REACH_TIMEOUT = 15  # seconds

# (pattern, replacement) for the Python files of v0.6, which are installed without C++ operators
REPAIRS = (
    (r"\bImage\.LINEAR\b", "Image.BILINEAR"),  # removed in Pillow 10
    (r"\bnp\.(bool|int|float|object|str)\b", r"\1"),  # removed in NumPy 1.24
    (  # replaces the C++ evaluation
        r"from detectron2\.evaluation\.fast_eval_api import COCOeval_opt",
        "from pycocotools.cocoeval import COCOeval as COCOeval_opt",
    ),
    # as in Detectron2 main: torch now checks that 1 channel cannot be split into 32 groups
    (r"\bget_norm\(norm, 1\)", "get_norm(norm, 32)"),
    # as in main without caffe2, which current torch lacks; tracing and scripting do not need it
    (r"(?m)^from \.api import \*$", ""),
)
OPERATORS = '''"""Stands in for the compiled operators, which most detectors do without."""


def get_compiler_version():
    return "none: Python sources only"


get_cuda_version = get_compiler_version


def has_cuda():
    return False
'''
# Replaces the setup.py of the release, which compiles C++ files that its archive lacks.
SETUP = f"""from setuptools import find_packages, setup

setup(
    name="detectron2", version="0.6", description={V06!r},
    packages=find_packages(include=["detectron2", "detectron2.*"]),
    package_data={{"detectron2.model_zoo": ["configs/**/*"]}},
)
"""


def pip(*args: str | Path) -> None:
    """Runs pip of this Python; its output, with download progress, goes to the terminal."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)]
    subprocess.run(command, check=True)


def installed() -> str | None:
    """Returns version and path of the installed Detectron2, without importing it; None if none."""
    spec = util.find_spec("detectron2")
    if spec is None:
        return None
    try:
        summary = metadata.metadata("detectron2")["Summary"]
        version = metadata.version("detectron2")
    except metadata.PackageNotFoundError:
        summary, version = "", "of unknown version"
    where = Path(spec.origin).parent if spec.origin else "a namespace package"
    return f"{summary if summary == V06 else version} at {where}"


def unreachable() -> str | None:
    """Returns the reason why the official repository cannot be reached; None if it can."""
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "ls-remote", REPOSITORY, "HEAD"]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, env=env, timeout=REACH_TIMEOUT, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{REPOSITORY} cannot be reached ({error})"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"git exits with {done.returncode}"]
    return f"{REPOSITORY} cannot be reached ({lines[-1]})"


def repair(package: Path) -> None:
    """Repairs the unpacked v0.6 package; RuntimeError if one of the patterns has no match."""
    for pattern, replacement in REPAIRS:
        count = 0
        for path in sorted(package.rglob("*.py")):
            text, found = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
            if found:
                path.write_text(text, encoding="utf-8")
                count += found
        if not count:
            raise RuntimeError(f"nothing in {package} matches {pattern}: not the v0.6 sources?")
    if any(package.glob("_C.*")):
        raise RuntimeError(f"{package} has a _C already: not the v0.6 sources?")
    (package / "_C.py").write_text(OPERATORS, encoding="utf-8")


def install_v06() -> None:
    """Downloads, checks, unpacks, repairs and installs the v0.6 sources."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pinned = folder / "sdist.txt"
        pinned.write_text(f"{SDIST} --hash=sha256:{SHA256}\n", encoding="utf-8")
        # pip checks the hash before it runs any code of the archive
        source = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-r", pinned)
        pip("download", *source, "--dest", folder)
        (archive,) = folder.glob("*.tar.gz")
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        with tarfile.open(archive) as tar:
            tar.extractall(folder, **safe)
        (package,) = folder.glob("*/detectron2")
        repair(package)
        (package.parent / "setup.py").write_text(SETUP, encoding="utf-8")
        pip("install", "--no-deps", "--no-build-isolation", package.parent)


def install() -> str:
    """Installs Detectron2 if none is installed; returns a line that says which one and why."""
    present = installed()
    if present is not None:
        return f"Detectron2: {present}, because it is already installed"
    reason = unreachable()
    if reason is None:
        try:
            pip("install", "--no-build-isolation", f"git+{REPOSITORY}@{COMMIT}")
            return f"Detectron2: official repository at {COMMIT[:8]}, because it is reachable"
        except subprocess.CalledProcessError:
            reason = f"the build of {REPOSITORY} failed (see above)"
    install_v06()
    return f"Detectron2: {V06}, because {reason}"


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    try:
        line = install()
        check = "import detectron2.modeling, detectron2.engine, detectron2.evaluation"
        subprocess.run([sys.executable, "-W", "ignore", "-c", check], check=True)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"error: no Detectron2: this command failed, see above: {command}", file=sys.stderr)
        return 1
    except (RuntimeError, OSError) as error:
        print(f"error: no Detectron2: {error}", file=sys.stderr)
        return 1
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
