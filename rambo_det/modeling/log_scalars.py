"""The loss's training scalars, in Detectron2's event storage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.utils.events import EventStorage, get_event_storage

from ..core import RamboLoss


def log_scalars(loss: RamboLoss, class_names: Sequence[str], prefix: str = "rambo") -> None:
    """Puts what the last call of ``loss`` saw under ``prefix/``; does nothing without a storage.

    ``AP`` (mean over the classes present), ``AP-<class>`` where present, ``memory_fill``,
    ``zero_gradient``, ``starved`` and, with several processes, ``bytes_sent``, see
    :class:`rambo_det.core.loss.LossStats`.
    """
    stats = loss.stats
    storage = current_storage()
    if stats is None or storage is None:
        return
    scalars = torch.stack([stats.zero_gradient, stats.starved])
    zero_gradient, starved, *rest = torch.cat(
        [scalars, stats.class_ap, stats.present.double()]
    ).tolist()
    storage.put_scalar(f"{prefix}/memory_fill", loss.memory.fill)
    if stats.bytes_sent:
        storage.put_scalar(f"{prefix}/bytes_sent", stats.bytes_sent)
    if zero_gradient == zero_gradient:  # NaN where the batch has no positive
        storage.put_scalar(f"{prefix}/zero_gradient", zero_gradient)
        storage.put_scalar(f"{prefix}/starved", starved)
    num_classes = loss.num_classes
    present = {c: ap for c, ap in enumerate(rest[:num_classes]) if rest[num_classes + c]}
    if present:
        storage.put_scalar(f"{prefix}/AP", sum(present.values()) / len(present))
    for c, ap in present.items():
        storage.put_scalar(f"{prefix}/AP-{class_names[c]}", ap)


def current_storage() -> EventStorage | None:
    """Detectron2's event storage; None outside of a training loop."""
    try:
        return get_event_storage()
    except AssertionError:  # has_event_storage() is in main alone
        return None
