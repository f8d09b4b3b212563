"""Makes the environment that `make train` and `make test` run in. Standard library only.

Without arguments, makes the virtual environment .venv in the clone, with the pins of
requirements.txt, Detectron2 (get_detectron2.py) and rambo_det itself. Another run updates .venv if
the files that it was made from have changed, and makes it again if a run was interrupted.
With --existing, checks the Python that runs this file and installs nothing; with --tests, checks
for the tests' packages too.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import get_detectron2

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Written first without a stamp, and last with the stamp. A .venv without a stamp is incomplete. A
# .venv without this file was not made by this tool.
STATE = VENV / "rambo_det.json"
MADE_FROM = ("requirements.txt", "setup.py", "pyproject.toml", "rambo_det/version.py")
MADE_FROM += ("tools/setup_env.py", "tools/get_detectron2.py")
NEEDED = ("torch", "torchvision", "fvcore", "omegaconf", "pycocotools", "cv2", "matplotlib")
NEEDED += ("detectron2",)
NEEDED_BY_TESTS = ("pytest", "hypothesis")


def stamp() -> str:
    """Returns a hash of the files that the environment is made from, and of the clone's path."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in MADE_FROM:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def write_state(state: dict[str, str]) -> None:
    part = STATE.with_suffix(".part")
    part.write_text(json.dumps(state), encoding="utf-8")
    os.replace(part, STATE)


def venv_python_runs() -> bool:
    """Returns whether the Python of .venv still starts: the Python that it links to may be gone."""
    try:
        return subprocess.run([PYTHON, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def run_step(title: str, *command: str | Path) -> None:
    print(f"[set-up] {title}", flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def make_venv() -> None:
    """Makes a new virtual environment with pip, even if this Python has no ensurepip."""
    VENV.mkdir(exist_ok=True)
    write_state({})
    for path in VENV.iterdir():  # STATE stays: after a kill it marks .venv as ours
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != STATE:
            path.unlink()
    print(f"[set-up] new environment {VENV} with Python {platform.python_version()}", flush=True)
    command = [sys.executable, "-m", "venv", str(VENV)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        return
    # Debian packages ensurepip separately: this Python's pip installs pip into .venv
    subprocess.run([*command, "--without-pip"], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([PYTHON, "-c", where], check=True, capture_output=True, text=True).stdout
    pip = (sys.executable, "-m", "pip", "install", "--target", site.strip(), "pip")
    run_step("pip (this Python has no ensurepip)", *pip)


def install() -> str:
    """Installs everything into .venv; returns the line about Detectron2."""
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install")
    run_step("requirements.txt (5 GB on disk, most of it torch)", *pip, "-r", "requirements.txt")
    print("[set-up] Detectron2", flush=True)
    command = [PYTHON, ROOT / "tools" / "get_detectron2.py"]
    line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    run_step("rambo_det", *pip, "--no-deps", "--no-build-isolation", "-e", ".")
    return line.strip()


def update_venv() -> None:
    """Brings .venv up to date, or does nothing if it is up to date."""
    state = json.loads(STATE.read_text(encoding="utf-8")) if STATE.is_file() else None
    if state is None and VENV.exists() and any(VENV.iterdir()):
        raise RuntimeError(
            f"{VENV} was not made by this set-up: move it away, or use it with "
            "PYTHON=.venv/bin/python"
        )
    if not (state and venv_python_runs()):
        make_venv()
    elif state["stamp"] == stamp():
        print(f"[set-up] {VENV} is up to date. {state['detectron2']}")
        return
    write_state({})
    line = install()
    write_state({"stamp": stamp(), "detectron2": line})
    print(f"[set-up] done. {line}")


def check_existing(tests: bool) -> None:
    """Prints which Python and Detectron2 are used; RuntimeError if a package is missing."""
    needed = NEEDED + NEEDED_BY_TESTS if tests else NEEDED
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"{sys.executable} cannot import {', '.join(missing)}: install the missing packages "
            "(requirements.txt has tested versions, tools/get_detectron2.py installs Detectron2), "
            "or leave out PYTHON, so that make creates an environment"
        )
    print(
        f"[set-up] nothing is installed: Python {platform.python_version()} at {sys.executable}, "
        f"Detectron2 {get_detectron2.installed()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--existing", action="store_true", help="check this Python, install nothing")
    add("--tests", action="store_true", help="with --existing: also check for the test tools")
    args = parser.parse_args()
    try:
        if args.existing:
            check_existing(args.tests)
        else:
            update_venv()
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"error: set-up stopped at a command that failed: {command}", file=sys.stderr)
        return 1
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
