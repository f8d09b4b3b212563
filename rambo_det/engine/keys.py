"""Names of the settings of a run in the two kinds of config, yaml and LazyConfig."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple


class Keys(NamedTuple):
    """Dotted keys of a config; ``separator`` is between key and value on the command line."""

    folder: str
    weights: str
    seed: str
    device: str
    train_sets: str
    test_sets: str
    max_iter: str
    batch_size: str
    rate: str
    checkpoint_period: str
    eval_period: str
    keep_best: str
    metric: str
    patience: str
    calibrate: str
    separator: str

    def is_set(self, key: str, opts: Sequence[str]) -> bool:
        """Returns whether the command line sets the key."""
        return any(opt.split("=")[0] == key for opt in opts[:: 2 if self.separator == " " else 1])

    def setting(self, key: str, dataset: str) -> str:
        """Returns how the command line names one dataset under a key."""
        return f"{key}={dataset}" if self.separator == "=" else f"{key} \"('{dataset}',)\""


YAML = Keys(
    "OUTPUT_DIR", "MODEL.WEIGHTS", "SEED", "MODEL.DEVICE", "DATASETS.TRAIN", "DATASETS.TEST",
    "SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD", "RAMBO_TRAIN.KEEP_BEST", "RAMBO_TRAIN.BEST_METRIC", "RAMBO_TRAIN.PATIENCE",
    "RAMBO_TRAIN.CALIBRATE", " ",
)  # fmt: skip
LAZY = Keys(
    "train.output_dir", "train.init_checkpoint", "train.seed", "train.device",
    "dataloader.train.dataset.names", "dataloader.test.dataset.names", "train.max_iter",
    "dataloader.train.total_batch_size", "optimizer.lr", "train.checkpointer.period",
    "train.eval_period", "train.keep_best", "train.best_metric", "train.patience",
    "train.calibrate", "=",
)  # fmt: skip


def get_key(cfg: Any, key: str) -> Any:
    """Returns the value of a dotted key in a config of either kind."""
    return reduce(lambda node, part: node[part], key.split("."), cfg)


def set_key(cfg: Any, key: str, new: Any) -> None:
    """Sets the value of a dotted key in a config of either kind."""
    above, _, last = key.rpartition(".")
    (get_key(cfg, above) if above else cfg)[last] = new


def has_key(cfg: Any, key: str) -> bool:
    """Returns whether a config has a key; a LazyConfig may lack one, or have None above it."""
    try:
        get_key(cfg, key)
    except (KeyError, AttributeError, TypeError):
        return False
    return True


def dataset_names(cfg: Any, key: str) -> list[str]:
    """Returns the dataset names under a key; a LazyConfig may have one name instead of a list."""
    names = get_key(cfg, key) if has_key(cfg, key) else []
    return [names] if isinstance(names, str) else list(names)
