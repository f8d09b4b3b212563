"""Fixtures that several test files share."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from .torture import WHOLE

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, where triton is first imported

HERE = Path(__file__).parent
# The loss's own tests run without Detectron2 too.
_IMPORTS = (
    r"^(from|import) (detectron2|rambo_det\.compare|\.+(models|architectures|command_line))\b"
)
_NEEDS = re.compile(_IMPORTS, re.M)
collect_ignore = [
    str(file.relative_to(HERE))
    for file in sorted(HERE.rglob("test_*.py"))
    if find_spec("detectron2") is None and _NEEDS.search(file.read_text(encoding="utf-8"))
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``whole`` are those of ``make torture`` alone."""
    if not WHOLE:
        left_out = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_report_header() -> list[str]:
    left_out = f"without Detectron2 {len(collect_ignore)} files of tests are left out"
    return [left_out] if collect_ignore else []


@pytest.fixture(autouse=True)
def heard_by_caplog() -> None:
    """What earlier tests of this process have set at loggers of ours does not matter.

    Detectron2's set-up of a run keeps them from the root's handlers, among which is caplog's, and
    the prediction tool quiets one of them.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "rambo_det":
            logger = logging.getLogger(name)
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Gives what the package has warned of."""
    caplog.set_level(logging.WARNING, logger="rambo_det")  # and not what Detectron2 says
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def real_data() -> Path:
    """The folder of the real data sets; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RAMBO_DET_DATA", beside))
    if not (folder / "chess").is_dir() or not (folder / "bccd").is_dir():
        pytest.skip(f"the real data sets are not in {folder} (set RAMBO_DET_DATA)")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished training of a few thousand parameters in ``out``.

    Its data, named on the command line: ``train.json``, ``train``, ``val.json``, ``val``. What it
    printed: ``printed.txt``.
    """
    from .command_line import own_data
    from .forked import python
    from .models import THIN

    folder = tmp_path_factory.mktemp("finished")
    data, keys = own_data(folder, "own", 4, 3)
    done = python(
        "tools/train_net.py", "--config", "configs/quickstart/faster_rcnn_rambo.yaml",
        *data, *keys, *THIN, "SOLVER.MAX_ITER", 3, "SEED", 3, "OUTPUT_DIR", folder / "out",
        RAMBO_DET_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and Detectron2's catalogs are afterwards as they were."""
    from detectron2 import data

    from rambo_det.data.shapes import register_shapes

    monkeypatch.setenv("RAMBO_DET_CACHE", str(tmp_path / "cache"))
    aside = []
    for catalog in (data.DatasetCatalog, data.MetadataCatalog):
        # Made in another cache, or by a model that asked for the names of the classes.
        for name in filter(lambda name: name.startswith("rambo_shapes_"), list(catalog)):
            aside.append((catalog, name, catalog.pop(name)))
    before = [set(catalog.keys()) for catalog in (data.DatasetCatalog, data.MetadataCatalog)]
    register_shapes()  # as importing rambo_det did, now in this cache
    yield
    for catalog, names in zip((data.DatasetCatalog, data.MetadataCatalog), before, strict=True):
        for name in set(catalog.keys()) - names:
            catalog.remove(name)
    for catalog, name, entry in aside:
        catalog[name] = entry
    # Their handlers write to a stream that the test's capture has closed by now.
    for logger in ("detectron2", "fvcore", "rambo_det"):
        logging.getLogger(logger).handlers.clear()
