"""Make the environment that `make train` and `make test` run in. Standard library only.

Without arguments: the virtual environment .venv in the clone, with the pins of requirements.txt,
Detectron2 (get_detectron2.py) and rambo_det itself. It is made once, brought up to date when what
it was made from changes, and made again when a run was broken off in the middle.
With --existing: check the Python that runs this file and install nothing. What only the tests need
is asked for with --tests.
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
# Written first, with no stamp, and last, with it: a .venv without a stamp is half made, and one
# without this file is somebody else's.
STATE = VENV / "rambo_det.json"
MADE_FROM = ("requirements.txt", "setup.py", "pyproject.toml", "rambo_det/version.py")
MADE_FROM += ("tools/setup_env.py", "tools/get_detectron2.py")
NEEDED = ("torch", "torchvision", "fvcore", "omegaconf", "pycocotools", "cv2", "matplotlib")
NEEDED += ("detectron2",)
NEEDED_BY_TESTS = ("pytest", "hypothesis")


def stamp() -> str:
    """Hash of everything the environment is made from, and of where the clone lies."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in MADE_FROM:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def write_state(state: dict[str, str]) -> None:
    part = STATE.with_suffix(".part")
    part.write_text(json.dumps(state), encoding="utf-8")
    os.replace(part, STATE)


def runs() -> bool:
    """Whether the Python of .venv still starts: the one that it links to may be gone."""
    try:
        return subprocess.run([PYTHON, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def step(title: str, *command: str | Path) -> None:
    print(f"[set-up] {title}", flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def make_venv() -> None:
    """A new virtual environment with pip, also where Python comes without ensurepip."""
    VENV.mkdir(exist_ok=True)
    write_state({})
    for path in VENV.iterdir():  # STATE stays: what a kill leaves here is known as ours
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != STATE:
            path.unlink()
    print(f"[set-up] new environment {VENV} with Python {platform.python_version()}", flush=True)
    command = [sys.executable, "-m", "venv", str(VENV)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        return
    # Debian packs ensurepip apart: take pip from the pip that is there
    subprocess.run([*command, "--without-pip"], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([PYTHON, "-c", where], check=True, capture_output=True, text=True).stdout
    pip = (sys.executable, "-m", "pip", "install", "--target", site.strip(), "pip")
    step("pip (this Python has no ensurepip)", *pip)


def install() -> str:
    """Fill .venv; returns the line about Detectron2."""
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install")
    step("requirements.txt (about 5 GB on disk, most of it torch)", *pip, "-r", "requirements.txt")
    print("[set-up] Detectron2", flush=True)
    command = [PYTHON, ROOT / "tools" / "get_detectron2.py"]
    line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    step("rambo_det", *pip, "--no-deps", "--no-build-isolation", "-e", ".")
    return line.strip()


def own() -> None:
    """Bring .venv up to date; does nothing where it is."""
    state = json.loads(STATE.read_text(encoding="utf-8")) if STATE.is_file() else None
    if state is None and VENV.exists() and any(VENV.iterdir()):
        raise RuntimeError(
            f"{VENV} was not made by this set-up: move it away, or use it with "
            "PYTHON=.venv/bin/python"
        )
    if not (state and runs()):
        make_venv()
    elif state["stamp"] == stamp():
        print(f"[set-up] {VENV} is up to date. {state['detectron2']}")
        return
    write_state({})
    line = install()
    write_state({"stamp": stamp(), "detectron2": line})
    print(f"[set-up] done. {line}")


def existing(tests: bool) -> None:
    """Say which Python and Detectron2 are used; RuntimeError if something is missing."""
    needed = NEEDED + NEEDED_BY_TESTS if tests else NEEDED
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"{sys.executable} cannot import {', '.join(missing)}: install what is missing there "
            "(requirements.txt has tested versions, tools/get_detectron2.py installs Detectron2), "
            "or leave PYTHON out to have an environment made"
        )
    print(
        f"[set-up] nothing is installed: Python {platform.python_version()} at {sys.executable}, "
        f"Detectron2 {get_detectron2.installed()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    help_text = "check this Python, install nothing"
    parser.add_argument("--existing", action="store_true", help=help_text)
    parser.add_argument("--tests", action="store_true", help="with it: check for the tests' tools")
    args = parser.parse_args()
    try:
        if args.existing:
            existing(args.tests)
        else:
            own()
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
