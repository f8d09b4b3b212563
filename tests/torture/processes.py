"""Runs of the command line as real processes, and what they leave behind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..forked import background, start_script

QUICKSTART = "configs/quickstart/faster_rcnn_rambo.yaml"


def environment(cache: Path) -> dict[str, str]:
    """What is added to the environment of a run with that cache."""
    return {"PYTHONWARNINGS": "ignore", "RAMBO_DET_CACHE": str(cache)}


@contextmanager
def started(tool: str, args: list[str], cache: Path) -> Iterator[subprocess.Popen[str]]:
    """``tools/<tool>`` while it runs, at most until the end of the block."""
    process = background(f"tools/{tool}", *args, **environment(cache))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and standard error of one that ends by itself."""
    _, err = process.communicate(timeout=600)
    return process.returncode, without_torchs_own(err)


def without_torchs_own(err: str) -> str:
    """Less what torch logs on its own: that it finds a CUDA toolkit but no GPU, its old names."""
    return re.sub(r"^[WE]\d{4} .*\btorch/.*\n", "", err, flags=re.MULTILINE)


def run(tool: str, args: list[str], cache: Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``tools/<tool>``.

    In a process of its own, forked from one that has imported everything.
    """
    out, err = outputs = [cache.with_name(f"std{end}") for end in ("out", "err")]
    for file in outputs:
        file.unlink(missing_ok=True)
    process = start_script(environment(cache), outputs, [f"tools/{tool}", *args])
    process.join(600)
    assert process.exitcode is not None, "it did not end in 10 minutes"
    return process.exitcode, out.read_text(), without_torchs_own(err.read_text())


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """The content of all files below a folder, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_one_line(status: int, err: str, message: str) -> None:
    """A user's mistake: one line ``error: …`` with the message in it, exit status 2."""
    assert status == 2, err[-3000:]
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err[-3000:]
    assert message in err


def assert_whole(folder: Path) -> str:
    """Every checkpoint of a run can be read, nothing half-written is there; returns the last one.

    Args:
        folder: the run's; the checkpoint that it goes on from is there.
    """
    for file in folder.glob("*.pth"):
        assert torch.load(file, map_location="cpu", weights_only=False)["model"]
    assert not list(folder.glob("*.part"))
    last = (folder / "last_checkpoint").read_text().strip()
    assert (folder / last).is_file()
    return last


def assert_it_goes_on(folder: Path, args: list[str], cache: Path) -> None:
    """A run goes on from its last checkpoint, for two iterations."""
    done = int(assert_whole(folder).removeprefix("model_").removesuffix(".pth")) + 1
    again = ["--resume", *args, "SOLVER.MAX_ITER", str(done + 2), "SOLVER.STEPS", "(1,)"]
    status, out, err = run("train_net.py", again, cache)
    assert status == 0, err[-3000:]
    assert f"Starting training from iteration {done}" in out
    assert assert_whole(folder) == "model_final.pth"
