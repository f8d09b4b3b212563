#!/usr/bin/env python
"""Check one row of the table of supported versions: a new environment, the wheel, a smoke test.

    python tools/check_versions.py --python python3.11 --torch 2.14.1 --torchvision 0.29.1 \\
        --detectron2 v0.6

makes a virtual environment in build/versions, installs torch, Detectron2 and the wheel that is
built from this clone, and runs tools/smoke_test.py there. What came of it is kept in
results/versions.json, from which --table makes the table of docs/versions.md. An environment takes
3 to 6 GB, and it is removed afterwards unless --keep is given. Standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import get_detectron2

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "versions.json"
VERSION = "import platform; print('.'.join(platform.python_version_tuple()[:2]))"
# What torch itself pins: it differs from torch to torch.
UNPINNED = ("torch", "torchvision", "sympy", "networkx", "filelock", "fsspec", "setuptools")


def constraints(text: str) -> str:
    """The lines of requirements.txt but those that go with the torch that is pinned there."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line and line.split("==")[0] not in UNPINNED)


def install(folder: Path, row: dict[str, str], python: str, source: str) -> Path:
    """Makes the environment of a row; returns its Python."""
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    own = folder / "bin" / "python"
    pins = folder / "constraints.txt"
    pins.write_text(constraints((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    pip = [own, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "-c", pins, "pip"], check=True)  # the pinned pip knows how to get v0.6
    torch = [f"torch=={row['torch']}", f"torchvision=={row['torchvision']}"]
    subprocess.run([*pip, "-c", pins, "setuptools<81", "wheel", *torch], check=True)
    # What the wheel asks for, but OpenCV without its windows.
    wheel = [own, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*wheel, ROOT], check=True)
    needed = ("fvcore", "pycocotools", "opencv-python-headless", "iopath", "omegaconf")
    needed += ("hydra-core", "cloudpickle", "tabulate", "termcolor", "tqdm", "matplotlib")
    needed += ("tensorboard", "black", "packaging")
    subprocess.run([*pip, "-c", pins, *torch, *needed], check=True)
    (built,) = folder.glob("rambo_det-*.whl")
    subprocess.run([*pip, "--no-deps", built], check=True)
    if row["detectron2"] == "v0.6":
        code = "import get_detectron2; get_detectron2.install_v06()"
        subprocess.run([own, "-c", code], check=True, cwd=ROOT / "tools")
    else:
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", source], check=True)
    return own


def load() -> list[dict[str, Any]]:
    """The rows that were checked, the oldest Python first."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def keep(row: dict[str, Any]) -> None:
    """Puts the row in the place of the one with the same versions."""
    key = ("python", "torch", "detectron2")
    rows = [old for old in load() if any(old[name] != row[name] for name in key)]
    rows.append(row)
    rows.sort(key=lambda one: [[int(n) for n in one[name].split(".")] for name in key[:2]])
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/versions.md."""
    lines = ["| Python | torch | torchvision | Detectron2 | checked | result |", "|---" * 6 + "|"]
    for row in rows:
        names = ("python", "torch", "torchvision", "detectron2", "date", "result")
        lines.append(f"| {' | '.join(row[name] for name in names)} |")
    return "\n".join(lines)


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="Python that the row is of")
    parser.add_argument("--torch", metavar="VERSION")
    parser.add_argument("--torchvision", metavar="VERSION")
    parser.add_argument("--detectron2", choices=["v0.6", "main"], default="v0.6")
    parser.add_argument(
        "--source", default=f"git+{get_detectron2.REPOSITORY}@{get_detectron2.COMMIT}",
        help="where main comes from: what pip installs, such as a folder",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="do not remove the environment")
    parser.add_argument("--table", action="store_true", help="print the table and check nothing")
    args = parser.parse_args()
    if args.table:
        print(table(load()))
        return 0
    if not (args.torch and args.torchvision):
        parser.error("say which: --torch 2.4.1 --torchvision 0.19.1, for example")
    try:
        done = subprocess.run([args.python, "-c", VERSION], capture_output=True, text=True)
    except OSError as error:
        print(f"error: --python {args.python}: {error.strerror}", file=sys.stderr)
        return 2
    if done.returncode:
        print(f"error: --python {args.python} does not run: {done.stderr.strip()}", file=sys.stderr)
        return 2
    row = {"python": done.stdout.strip(), "torch": args.torch, "torchvision": args.torchvision}
    row["detectron2"] = args.detectron2
    folder = ROOT / "build" / "versions" / "-".join((row["python"], args.torch, args.detectron2))
    row.update(date=datetime.date.today().isoformat(), result="failed")
    try:
        own = install(folder, row, args.python, args.source)
        subprocess.run([own, ROOT / "tools" / "smoke_test.py"], check=True, cwd=folder)
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
