"""The disk fills up while a run writes a checkpoint, or its metrics.

A tmpfs of 640 MiB that is filled; where mounting is not permitted, a limit to the size of the
files of the process (RLIMIT_FSIZE).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..forked import wait_until
from ..models import write_coco
from . import WHOLE
from .processes import assert_it_goes_on, assert_whole, ended, started
from .test_bad_input import good


class Disk:
    """A folder on a file system of its own, if that can be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=640m", "tmpfs", str(folder)]
        self.mounted = subprocess.run(mount, capture_output=True).returncode == 0
        self._ballast = folder / "ballast"

    def fill(self, left: int, process: subprocess.Popen[str]) -> None:
        """Leaves that many bytes."""
        if not self.mounted:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (left, left))
            return
        space = os.statvfs(self.folder)
        with open(self._ballast, "wb") as file:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_frsize - left, 1))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.mark.parametrize("moment", ["checkpoint", pytest.param("metrics", marks=pytest.mark.whole)])
def test_a_full_disk(moment, disk, tmp_path):
    write_coco(tmp_path, 3)
    folder = disk.folder / "out"
    period = "2" if moment == "checkpoint" else "10"
    keys = ["OUTPUT_DIR", str(folder), "SEED", "3", "SOLVER.CHECKPOINT_PERIOD", period]
    args = good(tmp_path, "SOLVER.MAX_ITER", "400", *keys)
    with started("train_net.py", args, tmp_path / "cache") as process:
        wait_until((folder / "last_checkpoint").is_file, process)
        if moment == "metrics":  # they come every 20 iterations
            wait_until((folder / "metrics.json").is_file, process)
            wait_until((folder / "metrics.json").read_text, process)
        before = (folder / "metrics.json").read_text() if moment == "metrics" else ""
        # One checkpoint takes 95 MiB.
        disk.fill((20 << 20) if moment == "checkpoint" else 0, process)
        status, err = ended(process)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status not in (0, None) and len(errors) == 1, err[-3000:]
    assert "No space left" in errors[0] or "File too large" in errors[0]
    assert err.count("\n") == 1, err[-3000:]
    assert_whole(folder)
    if moment == "metrics":
        assert (folder / "metrics.json").read_text().startswith(before)
    if not WHOLE:
        return
    disk.free()
    assert_it_goes_on(folder, args, tmp_path / "cache")
    assert all(json.loads(line) for line in (folder / "metrics.json").read_text().splitlines())
