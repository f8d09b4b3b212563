"""The loss itself, in plain PyTorch: nothing here knows Detectron2."""

from .blackbox import blackbox_rank
from .functional import ap_loss, class_ap_loss, interclass_ap_loss, recall_loss
from .loss import RamboLoss
from .memory import ScoreMemory

__all__ = [
    "RamboLoss",
    "ScoreMemory",
    "ap_loss",
    "blackbox_rank",
    "class_ap_loss",
    "interclass_ap_loss",
    "recall_loss",
]
