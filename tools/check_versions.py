#!/usr/bin/env python
"""Checks one row of the table of supported versions: a new environment, the wheel, a smoke test.

    python tools/check_versions.py --python python3.11 --torch 2.14.1 --torchvision 0.29.1 \\
        --detectron2 v0.6

makes a virtual environment in build/versions, installs torch, Detectron2 and the wheel that is
built from this clone, and runs tools/smoke_test.py there. The result goes to results/versions.json,
from which --table prints the table of docs/versions.md. An environment takes 3 to 6 GB, and it is
removed afterwards unless --keep is given. The tool needs only the standard library.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import get_detectron2

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "versions.json"
VERSION = "import platform; print('.'.join(platform.python_version_tuple()[:2]))"
NAMES = ("python", "torch", "torchvision", "detectron2", "date", "result")
# Packages whose versions depend on that of torch.
UNPINNED = ("torch", "torchvision", "sympy", "networkx", "filelock", "fsspec", "setuptools")
# What the wheel and Detectron2 require, with OpenCV in its headless version.
NEEDED = ("fvcore", "pycocotools", "opencv-python-headless", "iopath", "omegaconf", "hydra-core")
NEEDED += ("cloudpickle", "tabulate", "termcolor", "tqdm", "scipy", "matplotlib", "tensorboard")
NEEDED += ("black", "packaging")


def constraints(text: str) -> str:
    """Returns the pins of requirements.txt without those that depend on its version of torch."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line and line.split("==")[0] not in UNPINNED)


def install(folder: Path, row: dict[str, str], python: str, source: str) -> Path:
    """Makes the environment of a row; returns the path of its Python."""
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    venv_python = folder / "bin" / "python"
    pins = folder / "constraints.txt"
    pins.write_text(constraints((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    torch = (f"torch=={row['torch']}", f"torchvision=={row['torchvision']}")

    def pip(command: str, *args: str | Path) -> None:
        subprocess.run([venv_python, "-m", "pip", command, "-q", *args], check=True)

    pip("install", "-c", pins, "pip")  # the pinned pip can download v0.6
    pip("install", "-c", pins, "setuptools<81", "wheel", *torch, *NEEDED)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (built,) = folder.glob("rambo_det-*.whl")
    pip("install", "--no-deps", built)
    if row["detectron2"] == "v0.6":
        code = "import get_detectron2; get_detectron2.install_v06()"
        subprocess.run([venv_python, "-c", code], check=True, cwd=ROOT / "tools")
    else:
        pip("install", "--no-deps", "--no-build-isolation", source)
    return venv_python


def keep(row: dict[str, str]) -> None:
    """Stores a row; it replaces the row with the same versions. The oldest Python comes first."""
    key = ("python", "torch", "detectron2")
    rows = [old for old in load() if any(old[name] != row[name] for name in key)] + [row]
    rows.sort(key=lambda r: [[int(n) for n in r[name].split(".")] for name in key[:2]])
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def load() -> list[dict[str, str]]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def table(rows: list[dict[str, str]]) -> str:
    """Returns the table of docs/versions.md."""
    lines = ["| Python | torch | torchvision | Detectron2 | checked | result |", "|---" * 6 + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row[n] for n in NAMES)} |" for row in rows)])


def main() -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--python", default=sys.executable, help="Python to test (default: this one)")
    add("--torch", metavar="VERSION")
    add("--torchvision", metavar="VERSION")
    add("--detectron2", choices=["v0.6", "main"], default="v0.6")
    of_main = f"git+{get_detectron2.REPOSITORY}@{get_detectron2.COMMIT}"
    add("--source", default=of_main, help="Detectron2 main: a pip requirement or a folder")
    add("--keep", action="store_true", help="do not remove the environment")
    add("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    if args.table:
        print(table(load()))
        return 0
    if not (args.torch and args.torchvision):
        parser.error("versions missing, e.g. --torch 2.4.1 --torchvision 0.19.1")
    try:
        version = subprocess.check_output([args.python, "-c", VERSION], text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: --python {args.python} does not run: {error}", file=sys.stderr)
        return 2
    today = datetime.date.today().isoformat()
    values = (version, args.torch, args.torchvision, args.detectron2, today, "failed")
    row = dict(zip(NAMES, values, strict=True))
    folder = ROOT / "build" / "versions" / "-".join((version, args.torch, args.detectron2))
    try:
        venv_python = install(folder, row, args.python, args.source)
        subprocess.run([venv_python, ROOT / "tools" / "smoke_test.py"], check=True, cwd=folder)
        row["result"] = "passed"
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"error: this command failed, see above: {command}", file=sys.stderr)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    keep(row)
    print(table([row]))
    return int(row["result"] != "passed")


if __name__ == "__main__":
    sys.exit(main())
