"""Helpers that run the command line as real processes and check the files of a run."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..forked import background


@contextmanager
def started(args: list[str], cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a training with the given cache, and kills it at the end of the block."""
    environment = {"PYTHONWARNINGS": "ignore", "RAMBO_DET_CACHE": str(cache)}
    process = background("tools/train_net.py", *args, **environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for the end of a process and returns its exit status and standard error."""
    _, err = process.communicate(timeout=600)
    return process.returncode, without_torchs_own(err)


def without_torchs_own(err: str) -> str:
    """Returns ``err`` without torch's logs about a CUDA toolkit without a GPU and old names."""
    return re.sub(r"^[WE]\d{4} .*\btorch/.*\n", "", err, flags=re.MULTILINE)


def assert_one_line(status: int, err: str, message: str) -> None:
    """Checks that a mistake gives exit status 2 and one line ``error: …`` with the message."""
    assert status == 2, err[-3000:]
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err[-3000:]
    assert message in err


def assert_whole(folder: Path) -> str:
    """Checks that every checkpoint can be read and none is half-written; returns the last name.

    Args:
        folder: the folder of the run, with the checkpoint that the run would resume from.
    """
    for file in folder.glob("*.pth"):
        assert torch.load(file, map_location="cpu", weights_only=False)["model"]
    assert not list(folder.glob("*.part"))
    last = (folder / "last_checkpoint").read_text().strip()
    assert (folder / last).is_file()
    return last


def assert_it_goes_on(folder: Path, args: list[str], cache: Path) -> None:
    """Checks that a run resumes from its last checkpoint, for two iterations."""
    done = int(assert_whole(folder).removeprefix("model_").removesuffix(".pth")) + 1
    again = ["--resume", *args, "SOLVER.MAX_ITER", str(done + 2), "SOLVER.STEPS", "(1,)"]
    with started(again, cache) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    assert f"Starting training from iteration {done}" in out
    assert assert_whole(folder) == "model_final.pth"
