"""What is said where a score that is to be ranked is infinite or NaN."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .log_scalars import current_storage

#: Classes that are named.
_MOST = 5


def not_finite(loss: str, class_names: Sequence[str], *columns: Tensor) -> FloatingPointError:
    """The error with which Detectron2 stops a run, naming iteration, loss and classes.

    Args:
        loss: as it is called in the dict of losses.
        class_names: C names.
        *columns: ``(N, C)`` or ``(N, C + 1)``: what the scores were made of, then they themselves.
            The first of them that has a number that is not finite is told of; the last column of
            ``C + 1`` is background.
    """
    storage = current_storage()
    at = "" if storage is None else f" at iteration={storage.iter}"
    where = "in the batch of another process"
    for scores in columns:
        counts = (~scores.detach().isfinite()).sum(dim=0).tolist()
        bad = [
            f"{name} ({count} of {scores.shape[0]})"
            for name, count in zip([*class_names, "background"], counts, strict=False)
            if count
        ]
        if bad:
            more = f" and {len(bad) - _MOST} more" if len(bad) > _MOST else ""
            where = f"of class {', '.join(bad[:_MOST])}{more}"
            break
    return FloatingPointError(
        f"Loss became infinite or NaN{at}! {loss}: scores that are not finite, {where}"
    )
