"""A running training loses a data worker, an image or the space on its disk."""

import json
import os
import re
import resource
import signal
from pathlib import Path

import pytest

from ..forked import wait_until
from ..models import write_coco, write_image
from . import WHOLE
from .processes import assert_it_goes_on, assert_one_line, assert_whole, ended, started
from .test_bad_input import good


def workers(pid: int) -> list[int]:
    """Returns the process ids of a process's data workers, which are all of its children."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Returns the arguments of a long run with a checkpoint after 2 iterations."""
    write_coco(tmp_path, 4)
    test = ["--register-coco", "tt_test", *write_coco(tmp_path, 2, "val")]
    args = good(tmp_path, "SOLVER.MAX_ITER", "2000", "SOLVER.CHECKPOINT_PERIOD", "2", "SEED", "3")
    return [*args[:2], *test, *args[2:], "DATASETS.TEST", "('tt_test',)"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to find the workers in")
def test_a_data_worker_is_killed(arguments, tmp_path):
    arguments += ["DATALOADER.NUM_WORKERS", "2"]
    with started(arguments, tmp_path / "cache") as process:
        wait_until((tmp_path / "out" / "last_checkpoint").is_file, process)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        status, err = ended(process)
    assert status > 0 and err.startswith("error: ") and err.count("\n") == 1, err[-3000:]
    assert "data loader worker died" in err and "--resume" in err
    assert_whole(tmp_path / "out")


@pytest.mark.parametrize(
    "loss, num_workers",
    [
        ("missing", 2),
        pytest.param("truncated", 2, marks=pytest.mark.whole),
        pytest.param("missing", 0, marks=pytest.mark.whole),
        pytest.param("truncated", 0, marks=pytest.mark.whole),
        pytest.param("of another size", 0, marks=pytest.mark.whole),
    ],
)
def test_an_image_of_training(loss, num_workers, arguments, tmp_path):
    arguments += ["DATALOADER.NUM_WORKERS", str(num_workers)]
    image, folder = tmp_path / "train" / "0001.png", tmp_path / "out"
    content = image.read_bytes()
    with started(arguments, tmp_path / "cache") as process:
        wait_until((folder / "last_checkpoint").is_file, process)
        _lose(image, loss)
        assert_one_line(*ended(process), "train/0001.png")
    assert_whole(folder)
    if WHOLE:
        image.write_bytes(content)
        assert_it_goes_on(folder, arguments, tmp_path / "cache")


@pytest.mark.whole
@pytest.mark.parametrize("loss", ["missing", "truncated"])
def test_an_image_of_the_test_set(loss, arguments, tmp_path):
    folder = tmp_path / "out"
    arguments += ["SOLVER.MAX_ITER", "30"]
    with started(arguments, tmp_path / "cache") as process:
        wait_until((folder / "last_checkpoint").is_file, process)
        _lose(tmp_path / "val" / "0001.png", loss)
        assert_one_line(*ended(process), "val/0001.png")
    assert assert_whole(folder) == "model_final.pth"


@pytest.mark.parametrize("moment", ["checkpoint", pytest.param("metrics", marks=pytest.mark.whole)])
def test_a_full_disk(moment, tmp_path):
    """A limit to the size of the process's files simulates the full disk."""
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


def _lose(image: Path, how: str) -> None:
    if how == "missing":
        image.unlink()
    elif how == "truncated":
        image.write_bytes(image.read_bytes()[:2000])
    else:
        write_image(image, (10, 10))
