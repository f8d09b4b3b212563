"""The losses in plain PyTorch, without any import of Detectron2."""

from .blackbox_rank import blackbox_rank
from .functional import ap_loss, class_ap_loss, interclass_ap_loss, recall_loss
from .rambo_loss import RamboLoss
from .score_memory import ScoreMemory

__all__ = [
    "RamboLoss",
    "ScoreMemory",
    "ap_loss",
    "blackbox_rank",
    "class_ap_loss",
    "interclass_ap_loss",
    "recall_loss",
]
