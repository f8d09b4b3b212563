"""Mistakes on the real command line give one line and exit status 2, and change no file.

All cases but one call the command line's main in this process. More mistakes are in the tables of
tests/test_data_coco.py, test_data_voc.py, test_data_folders.py, test_configs.py and
test_criterion.py.
"""

import errno
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from rambo_det.cli import train

from ..models import QUICKSTART, write_coco
from .processes import assert_one_line, ended, started, without_torchs_own

LAZY = "configs/lazy/retinanet_rambo.py"
_buffer = io.BytesIO()
torch.save({"model": {"a": torch.zeros(1)}}, _buffer)
FOREIGN = _buffer.getvalue()
WEIGHTS = ("MODEL.WEIGHTS", "{folder}/w.pth")
TWO_SETS = ("--config", QUICKSTART, "--register-coco", "a", "no.json", ".")
TWO_SETS += ("--register-voc", "b", ".", "val")

Make = Callable[[Path], list[str]]


def good(folder: Path, *extra: str, config: str = QUICKSTART, lazily: bool = False) -> list[str]:
    """Returns arguments without a mistake. If a key occurs twice, its last value counts."""
    data = ["--register-coco", "tt_data", f"{folder}/train.json", f"{folder}/train"]
    own = ["DATASETS.TRAIN", "('tt_data',)", "DATASETS.TEST", "('tt_data',)"]
    own += ["OUTPUT_DIR", f"{folder}/out", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]
    if lazily:
        own = [f"dataloader.{split}.dataset.names=tt_data" for split in ("train", "test")]
        own += [f"train.output_dir={folder}/out"]
    flags = [e for e in extra if e.startswith("--")]
    return ["--config", config, *data, *flags, *own, *(e for e in extra if e not in flags)]


lazily = partial(good, config=LAZY, lazily=True)


def keys(*pairs: str, arguments: Callable[..., list[str]] = good) -> Make:
    """Returns a maker of good arguments to which these flags and keys are added."""
    return lambda folder: arguments(folder, *(p.replace("{folder}", str(folder)) for p in pairs))


def last(*args: str, arguments: Callable[..., list[str]] = good) -> Make:
    """Returns a maker of good arguments with these behind the config keys."""
    return lambda folder: [*arguments(folder), *args]


def config(text: str, arguments: Callable[..., list[str]] = good) -> Make:
    """Returns a maker of good arguments with a config file of this content."""

    def make(folder: Path) -> list[str]:
        path = folder / ("own.yaml" if arguments is good else "own.py")
        path.write_text(text)
        return arguments(folder, config=str(path))

    return make


def file(name: str, content: bytes | None, *opts: str) -> Make:
    """Returns a maker of good arguments that gives a file new content; None: makes it a folder."""

    def make(folder: Path) -> list[str]:
        path = folder / name
        if content is None:
            path.unlink(missing_ok=True)
            path.mkdir()
        else:
            path.write_bytes(content)
        return keys(*opts)(folder)

    return make


def words(*args: str) -> Make:
    """Returns a maker of these arguments only."""
    return lambda folder: list(args)


def built_on(line: str) -> Make:
    """Returns a maker for a user's LazyConfig that changes one setting of the shipped config."""
    return config(
        f"from detectron2.config import LazyConfig\ncfg = LazyConfig.load({LAZY!r})\n"
        "model, dataloader, train = cfg.model, cfg.dataloader, cfg.train\n"
        f"optimizer, lr_multiplier = cfg.optimizer, cfg.lr_multiplier\n{line}\n",
        lazily,
    )


lazy_keys = partial(keys, arguments=lazily)

#: Config keys -> a part of the error line.
KEYS = {
    "SOLVER.MAX_ITER=5 x": "did you mean SOLVER.MAX_ITER?",
    "MODEL.RAMBO 3": "'MODEL.RAMBO' is not a config key: did you mean MODEL.RAMBO.",
    "solver.max_iter 5": "did you mean SOLVER.MAX_ITER?",
    "SOLVER.MAX_ITER many": "MAX_ITER many: it must have the same type as its default, 40000",
    "SOLVER.IMS_PER_BATCH 0": "SOLVER.IMS_PER_BATCH must be an integer >= 1, got 0",
    "SOLVER.CHECKPOINT_PERIOD 0": "SOLVER.CHECKPOINT_PERIOD must be an integer >= 1",
    "SOLVER.AMP.ENABLED True MODEL.DEVICE cpu": "SOLVER.AMP.ENABLED True needs a GPU",
    "SOLVER.BASE_LR 0": "SOLVER.BASE_LR must be > 0",
    "SOLVER.LR_SCHEDULER_NAME Cosine": "Unknown LR scheduler: Cosine",
    "MODEL.META_ARCHITECTURE YOLO": "does not exist; available: GeneralizedRCNN, ",
    "MODEL.ROI_HEADS.NAME RamboHeads": "does not exist; available: CascadeROIHeads, ",
    "MODEL.BACKBONE.NAME resnet50": "does not exist; available: build_resnet_backbone",
    "MODEL.ROI_BOX_HEAD.NAME Head": "does not exist; available: FastRCNNConvFCHead",
    "MODEL.RPN.HEAD_NAME Head": "does not exist; available: StandardRPNHead",
    "DATALOADER.SAMPLER_TRAIN Sampler": "does not exist; available: TrainingSampler, Repeat",
    "INPUT.RANDOM_FLIP both": "does not exist; available: horizontal, vertical, none",
    "MODEL.RESNETS.DEPTH 20": "must be one of (18, 34, 50, 101, 152)",
    "MODEL.DEVICE gpu": "MODEL.DEVICE 'gpu': use cpu, cuda or cuda:1",
    "MODEL.RAMBO.SCORE x": "MODEL.RAMBO.SCORE must be one of",
    "RAMBO_TRAIN.PATIENCE 3": "RAMBO_TRAIN.PATIENCE needs periodic evaluation",
    "RAMBO_TRAIN.PATIENCE -1": "RAMBO_TRAIN.PATIENCE must be >= 0, got -1",
    "TEST.EVAL_PERIOD 1 RAMBO_TRAIN.BEST_METRIC AP": "unknown metric; valid: bbox/",
    "TEST.EVAL_PERIOD 1 DATASETS.TEST ('tt_data','rambo_shapes_val')": "e.g. tt_data/bbox/AP",
    "RAMBO_TRAIN.CLS_WEIGHT 0": "RAMBO_TRAIN.CLS_WEIGHT must be > 0",
    "SEED 4294967296": "must be below 2**32, got 4294967296",
    "DATASETS.TRAIN ()": "is empty: set DATASETS.TRAIN \"('NAME',)\"",
    "DATASETS.TRAIN tt_data": "it must be a list: write \"('tt_data',)\"",
    "SOLVER.STEPS (100)": "it must be a list: write \"(100,)\"",
    "MODEL.ROI_HEADS.NUM_CLASSES 3": "NUM_CLASSES is 3, but the data have",
    "DATASETS.TRAIN ('trian',)": "trian is not registered",
    "DATASETS.TEST ('coco_2017_val',)": "does not exist: set DETECTRON2_DATASETS to the folder",
    "MODEL.WEIGHTS x.pth": "x.pth: no such",
    "OUTPUT_DIR /proc/none/out": "OUTPUT_DIR /proc/none/out cannot be created: ",
}  # fmt: skip
LAZY_KEYS = {
    "train.max_iter=many": "must be a number or a boolean, like the current value 90000",
    "train.max_iter=2.5": "train.max_iter must be an integer >= 1, got 2.5",
    "train.max_iter=0": "train.max_iter must be an integer >= 1, got 0",
    "dataloader.train.total_batch_size=0": "total_batch_size must be an integer >= 1, got 0",
    "dataloader.train.dataset.names=[]": "is empty: set dataloader.train.dataset.names=NAME",
    "dataloader.train.dataset.names=('a',)": "cannot be read: a list is KEY=[A,B]",
    "train.max_iter 5": "KEY=VALUE, got 'train.max_iter'",
    "train.patience=3 train.eval_period=0": "train.patience needs periodic evaluation",
    "train.patience=-1": "train.patience must be >= 0, got -1",
    "train.best_metric=AP train.eval_period=5": "train.best_metric 'AP': unknown metric",
    "train.best_metric=5 train.eval_period=5": "train.best_metric 5: unknown metric",
    "train.max_itr=5": "unknown config key train.max_itr",
    "modle.num_classes=5": "config key modle.num_classes",
    "dataloader.test.dataset.names=nowhere": "nowhere is not registered",
    "dataloader.train.dataset.names=coco_2017_train dataloader.test.dataset.names=coco_2017_val":
        "(tt_data) is in dataloader.train.dataset.names, which is coco_2017_train: add ",
    "train.init_checkpoint=none.pth": "none.pth: no such file",
}  # fmt: skip
CASES: dict[str, tuple[Make, str]] = {
    # The command line itself.
    "a flag that does not exist": (words("--epochs", "5"), "unrecognized arguments: --epochs"),
    "a flag without its value": (words("--config"), "--config: expected one argument"),
    "a name of data that comes last": (
        words("--register-coco", "train.json", "images", "a"), "must be a dataset name",
    ),
    "a flag with two of three": (words("--register-coco", "a", "b"), "expected 3 arguments"),
    "a number of GPUs that is none": (words("--num-gpus", "two"), "invalid int value"),
    "--resume and --fresh": (keys("--resume", "--fresh"), "exclude each other"),
    "no config": (words(), "--config FILE is missing"),
    "a flag behind the keys": (last("--seeds", "2"), "come before the config keys: --seeds"),
    "a lone flag behind the keys": (last("--resume"), "come before the config keys: --resume"),
    "a word too many": (last("rambo", "SOLVER.MAX_ITER", "10"), "'rambo' is not a config key"),
    "a key without a value": (last("SOLVER.MAX_ITER"), "'SOLVER.MAX_ITER' has no value"),
    "a wrong key without a value": (
        last("SOLVER.MAXITER"), "'SOLVER.MAXITER' is not a config key: did you mean SOLVER.MAX_",
    ),
    "more GPUs than there are": (words("--config", QUICKSTART, "--num-gpus", "99"), "machine has "),
    "unused classes": (words("--config", QUICKSTART, "--classes", "a,b"), "goes with --register"),
    "a name that is taken": (
        words("--config", QUICKSTART, "--register-coco", "rambo_shapes_train", "no.json", "."),
        "is already registered: choose another name",
    ),
    "own data that are not trained on": (
        words(*TWO_SETS, "DATASETS.TEST", "('b',)"),
        "registered datasets (a, b) is in DATASETS.TRAIN, which is rambo_shapes_train: "
        "add DATASETS.TRAIN \"('a',)\"",
    ),
    "own data that are not tested on": (
        words(*TWO_SETS, "DATASETS.TRAIN", "('a',)"),
        "DATASETS.TEST, which is rambo_shapes_val: add DATASETS.TEST \"('b',)\"",
    ),
    "own data, another test": (keys("DATASETS.TEST", "('rambo_shapes_val',)"), "use other data"),
    "a folder as data.yaml": (
        words("--config", QUICKSTART, "--register-yolo", "a", "configs", "train",
              "DATASETS.TRAIN", "('a',)", "DATASETS.TEST", "('a',)"),
        "configs is a folder: give the path of its data.yaml",
    ),
    "an evaluation of no run": (keys("--eval-only"), "no checkpoint in"),
    "that, with other classes than the config": (
        keys("--eval-only", "DATASETS.TRAIN", "('rambo_shapes_train',)"), "no checkpoint in",
    ),
    "that, without weights": (keys("--eval-only", "MODEL.WEIGHTS", ""), "no checkpoint in"),
    "an evaluation on nothing": (
        keys("--eval-only", "MODEL.WEIGHTS", "w.pth", "DATASETS.TEST", "()"),
        "DATASETS.TEST is empty: set DATASETS.TEST \"('NAME',)\"",
    ),
    "a checkpoint without a name": (
        file("out/last_checkpoint", b"", "--eval-only"), "out/last_checkpoint is empty: write",
    ),
    "--eval-only and --fresh": (keys("--eval-only", "--fresh"), "exclude each other"),
    "keys for --check-data without a config": (
        words("--check-data", "out", "--register-coco", "a", "no.json", ".", "SEED", "3"),
        "--hold-out and config keys need --config FILE",
    ),
    "a damaged data.json": (file("out/data.json", b'{"cl', "--resume"), "data.json is damaged"),
    "a data.json that is a list": (file("out/data.json", b"[]", "--resume"), "data.json is damag"),
    "a name that is too long": (keys("OUTPUT_DIR", "x" * 300), "cannot be created: [Errno 36]"),
    "that, on images held out of no data": (
        keys("--eval-only", "--hold-out=2", "MODEL.WEIGHTS", "w", "DATASETS.TRAIN", "('trian',)"),
        "trian is not registered",
    ),
    # Config files.
    "no such config": (words("--config", "configs/none.yaml"), "configs/none.yaml: no such file"),
    "a folder as config": (words("--config", "configs"), "--config configs: no such file"),
    "a picture as config": (lambda f: good(f, config=f"{f}/train/0000.png"), "png cannot be used"),
    "an empty config": (config(""), "it is not a yaml mapping such as 'MODEL: ...'"),
    "a config that is a list": (config("- MODEL\n- SOLVER\n"), "it is not a yaml mapping"),
    "a LazyConfig for a yaml": (
        lambda folder: good(folder, config=LAZY),
        "it is a LazyConfig, for tools/lazyconfig_train_net.py",
    ),
    "a base that does not exist": (config("_BASE_: none.yaml\n"), "No such file or directory: "),
    "a base that is the file itself": (config("_BASE_: own.yaml\n"), "circular _BASE_"),
    "an unknown key in a file": (config("VERSION: 2\nSOLVER: {EPOCHS: 5}"), "unknown config key"),
    "text for a number": (config("VERSION: 2\nSOLVER: {MAX_ITER: no}"), "(40000 vs. False)"),
    "a tab in a yaml": (config("SOLVER:\n\tMAX_ITER: 5\n"), "cannot start any token"),
    # Files and folders.
    "weights that are text": (file("w.pth", b"text", *WEIGHTS), "cannot be read as a checkpoint"),
    "weights that are empty": (file("w.pth", b"", *WEIGHTS), "cannot be read as a checkpoint"),
    "weights of another model": (file("w.pth", FOREIGN, *WEIGHTS), "no weight in this checkpoint"),
    "weights that are a folder": (keys("MODEL.WEIGHTS", "{folder}/train"), "/train: no such file"),
    "an output that is a file": (keys("OUTPUT_DIR", "{folder}/train.json"), "is not a folder"),
    "an output below a file": (keys("OUTPUT_DIR", "{folder}/train.json/out"), "cannot be created"),
    "an output without a name": (keys("OUTPUT_DIR", ""), "is empty: set an output folder"),
    # Data.
    "a folder as annotations": (file("train.json", None), "name the json file and the image fol"),
    "an image that is a folder": (file("train/0001.png", None), "train/0001.png is missing"),
    "an image that is text": (file("train/0001.png", b"version 1"), "0001.png is not an image"),
    "no folder of images": (lambda f: (f / "train").rename(f / "other") and good(f), "is missing"),
}  # fmt: skip
LAZY_CASES: dict[str, tuple[Make, str]] = {
    "a yaml for a LazyConfig": (
        lambda f: lazily(f, config=QUICKSTART), "is a yaml config, for tools/train_net.py"
    ),
    "a LazyConfig that is no Python": (config("model = (", lazily), "own.py: SyntaxError: "),
    "a LazyConfig of a missing module": (config("import no_module\n", lazily), "No module named"),
    "a LazyConfig without a model": (config("max_iter = 5\n", lazily), "it has no 'model'"),
    "a LazyConfig with an error": (config("model = 1 / 0\n", lazily), "line 1: ZeroDivisionError"),
    "its patience as text": (built_on("train.patience = 'many'"), "must be an integer, got 'many'"),
    "its period nothing": (built_on("train.eval_period = None"), "must be an integer, got None"),
    "its evaluation of no run": (lazy_keys("--eval-only"), "no checkpoint in train.output_dir"),
    "that, whatever the training": (
        lazy_keys("--eval-only", "train.patience=3", "train.eval_period=0"), "no checkpoint in",
    ),
    "a hold-out for it": (lazy_keys("--hold-out=3"), "unrecognized arguments: --hold-out=3"),
    "a flag behind its keys": (
        last("train.seed=1", "--resume", arguments=lazily),
        "error: options come before the config keys: --resume",
    ),
}  # fmt: skip
CASES |= {text: (keys(*text.split()), message) for text, message in KEYS.items()}
LAZY_CASES |= {text: (lazy_keys(*text.split()), message) for text, message in LAZY_KEYS.items()}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Returns the content of all files below a folder, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """Returns a user's folder with data and an output folder, in which the user has a file."""
    folder = tmp_path / "user"
    folder.mkdir()
    write_coco(folder, 3)
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("name", [*CASES, *LAZY_CASES])
def test_a_mistake(name, user, tmp_path, capsys, catalogs):
    make, message = (CASES | LAZY_CASES)[name]
    args = make(user)
    before = snapshot(user)
    if name == "an image that is text":  # one case as a user starts it, with imports
        with started(args, tmp_path / "cache") as process:
            status, err = ended(process)
    else:
        status = train.main(args, lazy=name in LAZY_CASES)
        out, err = capsys.readouterr()
        assert out == "" or "weights" in name, "it began to train"
        err = without_torchs_own(err)
    assert_one_line(status, err, message)
    after = snapshot(user)
    assert {name: after.get(name, "gone") for name in before} == before
    # The output folder must not look like a run, which a later run would not overwrite.
    assert not after.get("out/last_checkpoint") and not after.get("out/metrics.json")


@pytest.mark.parametrize("make", [good, lazily])
def test_an_output_that_cannot_be_written(make, user, capsys, catalogs, monkeypatch):
    # Simulates a user other than root, because root can write all files, whatever their mode.
    out, access = user / "out", os.access
    out.chmod(0o555)
    monkeypatch.setattr(
        os, "access", lambda path, mode, **how: Path(path) != out and access(path, mode, **how)
    )
    before, key = snapshot(user), "OUTPUT_DIR" if make is good else "train.output_dir"
    assert train.main(make(user), lazy=make is lazily) == 2
    assert capsys.readouterr().err == (
        f"error: {key} {out} is not writable: change its permissions or name another folder\n"
    )
    assert snapshot(user) == before


@pytest.mark.parametrize(
    "number, advice",
    [
        (errno.EACCES, "change the permissions of the file or its folder"),
        (errno.ENOSPC, "free some disk space"),
        (errno.EROFS, "write to a folder that is not read-only"),
    ],
)
def test_a_file_error_is_named(number, advice, user, capsys, catalogs, monkeypatch):
    file = str(user / "out" / "data.json")

    def refuse(*args):
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr("rambo_det.engine.terminal.default_setup", refuse)
    assert train.main(good(user)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: [Errno {number}] {os.strerror(number)}: {file!r}: {advice}; "
        "--resume continues from the last checkpoint"
    )


@pytest.mark.whole
def test_without_a_mistake_it_trains(user, catalogs):
    """The arguments without a mistake train, also with a blank and any letters in the path."""
    folder = user.rename(user.with_name("größe 寸法"))
    assert train.main(good(folder)) == 0
    assert (folder / "out" / "notes.txt").read_text() == "mine"
    assert (folder / "out" / "model_final.pth").is_file()
