"""The disk fills up while a run writes a checkpoint, or its metrics.

A limit to the size of the process's files (RLIMIT_FSIZE) simulates the full disk.
"""

from __future__ import annotations

import json
import re
import resource

import pytest

from ..forked import wait_until
from ..models import write_coco
from . import WHOLE
from .processes import assert_it_goes_on, assert_whole, ended, started
from .test_bad_input import good


@pytest.mark.parametrize("moment", ["checkpoint", pytest.param("metrics", marks=pytest.mark.whole)])
def test_a_full_disk(moment, tmp_path):
    write_coco(tmp_path, 3)
    folder = tmp_path / "out"
    period = "2" if moment == "checkpoint" else "10"
    args = good(tmp_path, "SOLVER.MAX_ITER", "400", "SEED", "3", "SOLVER.CHECKPOINT_PERIOD", period)
    with started(args, tmp_path / "cache") as process:
        wait_until((folder / "last_checkpoint").is_file, process)
        if moment == "metrics":  # the run writes them every 20 iterations
            wait_until((folder / "metrics.json").is_file, process)
            wait_until((folder / "metrics.json").read_text, process)
        before = (folder / "metrics.json").read_text() if moment == "metrics" else ""
        # One checkpoint takes 95 MiB.
        left = (20 << 20) if moment == "checkpoint" else 0
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (left, left))
        status, err = ended(process)
    # Python cannot write the end of the log either.
    err = re.sub(r"Exception ignored in atexit .*\nOSError: .*\n", "", err)
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, err[-3000:]
    assert "File too large" in err
    assert_whole(folder)
    if moment == "metrics":
        assert (folder / "metrics.json").read_text().startswith(before)
    if WHOLE:
        assert_it_goes_on(folder, args, tmp_path / "cache")
        assert all(map(json.loads, (folder / "metrics.json").read_text().splitlines()))
