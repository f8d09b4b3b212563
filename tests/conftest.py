"""Fixtures that several test files share."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
import torch

from .torture import WHOLE

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # triton reads this once, when imported

HERE = Path(__file__).parent
# The tests of the loss itself also run without Detectron2.
_NEEDS = re.compile(
    r"(?m)^(from|import) (detectron2|rambo_det\.compare|\.+(models|architectures|command_line))\b"
)
collect_ignore = [
    str(file.relative_to(HERE))
    for file in sorted(HERE.rglob("test_*.py"))
    if find_spec("detectron2") is None and _NEEDS.search(file.read_text(encoding="utf-8"))
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests marked ``whole``, unless ``make torture`` runs."""
    if not WHOLE:
        left_out = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_report_header() -> list[str]:
    left_out = f"without Detectron2 {len(collect_ignore)} files of tests are left out"
    return [left_out] if collect_ignore else []


@pytest.fixture(autouse=True)
def heard_by_caplog() -> None:
    """Resets the package's loggers, so that caplog receives their records in every test.

    Detectron2's logger setup stops propagation to the root logger, which has caplog's handler. The
    prediction tool raises the level of one logger.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "rambo_det":
            logger = logging.getLogger(name)
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns a function that returns the package's warnings so far."""
    caplog.set_level(logging.WARNING, logger="rambo_det")  # not Detectron2's records
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def real_data() -> Path:
    """Returns the folder of the real datasets; skips the test if it does not exist."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RAMBO_DET_DATA", beside))
    if not (folder / "chess").is_dir() or not (folder / "bccd").is_dir():
        pytest.skip(f"the real data sets are not in {folder} (set RAMBO_DET_DATA)")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains a model of a few thousand parameters; returns a folder with the run in ``out``.

    The folder also contains the data, ``train.json``, ``train``, ``val.json`` and ``val``, which
    the command line registers, and the output of the command, ``printed.txt``.
    """
    from .command_line import own_data
    from .forked import python
    from .models import QUICKSTART, THIN

    folder = tmp_path_factory.mktemp("finished")
    data, keys = own_data(folder, "own", 4, 3)
    done = python(
        "tools/train_net.py", "--config", QUICKSTART, *data, *keys, *THIN,
        "SOLVER.MAX_ITER", 3, "SEED", 3, "OUTPUT_DIR", folder / "out",
        RAMBO_DET_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sets an empty cache for the test, and restores Detectron2's catalogs after the test."""
    from detectron2 import data

    from rambo_det.data.shapes import register_shapes

    monkeypatch.setenv("RAMBO_DET_CACHE", str(tmp_path / "cache"))
    with mock.patch.dict(data.DatasetCatalog), mock.patch.dict(data.MetadataCatalog):
        for catalog in (data.DatasetCatalog, data.MetadataCatalog):
            # Left by a test with another cache, or by a model that looked up the class names.
            for name in filter(lambda name: name.startswith("rambo_shapes_"), list(catalog)):
                catalog.pop(name)
        register_shapes()  # in this cache
        yield
    # The handlers of these loggers write to a stream that pytest has closed by now.
    for logger in ("detectron2", "fvcore", "rambo_det"):
        logging.getLogger(logger).handlers.clear()
