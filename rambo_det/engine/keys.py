"""How the two kinds of config, yaml and LazyConfig, call what a training has to know."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple


class Keys(NamedTuple):
    """Keys of a config, with dots; ``sign`` stands between key and value on the command line."""

    folder: str
    weights: str
    seed: str
    device: str
    train: str
    test: str
    period: str
    keep: str
    metric: str
    patience: str
    calibrate: str
    sign: str

    def named(self, key: str, opts: Sequence[str]) -> bool:
        """Whether the command line gives the key a value."""
        return any(opt.split("=")[0] == key for opt in opts[:: 2 if self.sign == " " else 1])


YAML = Keys(
    "OUTPUT_DIR", "MODEL.WEIGHTS", "SEED", "MODEL.DEVICE", "DATASETS.TRAIN", "DATASETS.TEST",
    "TEST.EVAL_PERIOD", "RAMBO_TRAIN.KEEP_BEST", "RAMBO_TRAIN.BEST_METRIC", "RAMBO_TRAIN.PATIENCE",
    "RAMBO_TRAIN.CALIBRATE", " ",
)  # fmt: skip
LAZY = Keys(
    "train.output_dir", "train.init_checkpoint", "train.seed", "train.device",
    "dataloader.train.dataset.names", "dataloader.test.dataset.names", "train.eval_period",
    "train.keep_best", "train.best_metric", "train.patience", "train.calibrate", "=",
)  # fmt: skip


def value(cfg: Any, key: str) -> Any:
    """What a config of either kind has under a key with dots."""
    return reduce(lambda node, part: node[part], key.split("."), cfg)


def set_value(cfg: Any, key: str, new: Any) -> None:
    """Changes what a config of either kind has under a key with dots."""
    above, _, last = key.rpartition(".")
    (value(cfg, above) if above else cfg)[last] = new


def names(cfg: Any, key: str) -> list[str]:
    """The data sets under a key: a LazyConfig may have one name in place of a list."""
    try:
        found = value(cfg, key)
    except (KeyError, AttributeError):  # of a LazyConfig with a loader of the user's own
        return []
    return [found] if isinstance(found, str) else list(found)
