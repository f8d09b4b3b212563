"""What a training says of the loss: its scalars, and the error if a score is not finite."""

from collections.abc import Sequence

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

from ..losses import RamboLoss

#: On a GPU, which has to be waited for, scalars are read when Detectron2's writers write.
_GPU_PERIOD = 20
#: Classes that an error names.
_MAX_NAMED = 5


def log_scalars(loss: RamboLoss, class_names: Sequence[str], prefix: str = "rambo") -> None:
    """Puts what the last call of ``loss`` saw under ``prefix/``; does nothing without a storage.

    ``AP`` (mean over the classes present), ``AP-<class>`` where present, ``memory_fill``,
    ``zero_gradient``, ``starved`` and, with several processes, ``bytes_sent``, see
    :class:`rambo_det.losses.rambo_loss.LossStats`.
    """
    stats, storage = loss.stats, current_storage()
    if stats is None or storage is None:
        return
    if stats.present.is_cuda and (storage.iter + 1) % _GPU_PERIOD:
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


def not_finite(loss: str, class_names: Sequence[str], *scores: Tensor) -> FloatingPointError:
    """The error with which Detectron2 stops a run, naming iteration, loss and classes.

    Args:
        loss: its name in the dict of losses.
        class_names: C names.
        *scores: ``(N, C)`` or, with a last column of background, ``(N, C + 1)``. The first of them
            that has a number that is not finite is described.
    """
    storage = current_storage()
    at = "" if storage is None else f" at iteration={storage.iter}"
    where = "in the batch of another process"
    for each in scores:
        counts = (~each.detach().isfinite()).sum(dim=0).tolist()
        bad = [
            f"{name} ({count} of {each.shape[0]})"
            for name, count in zip([*class_names, "background"], counts, strict=False)
            if count
        ]
        if bad:
            more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
            where = f"of class {', '.join(bad[:_MAX_NAMED])}{more}"
            break
    return FloatingPointError(
        f"Loss became infinite or NaN{at}! {loss}: scores that are not finite, {where}"
    )


def current_storage() -> EventStorage | None:
    """Detectron2's event storage; None outside of a training loop."""
    try:
        return get_event_storage()
    except AssertionError:  # Detectron2 v0.6 has no has_event_storage()
        return None
