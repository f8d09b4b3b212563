"""Counting of all N·C scores between edges, by the fastest backend of a device."""

import functools
import logging
import os

import torch
from torch import Tensor

from ..sort_keys import make_keys
from . import cpu, reference

__all__ = ["bin_negatives"]


def bin_negatives(
    scores: Tensor,
    gt_classes: Tensor,
    edges: Tensor,
    values: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    max_score: float = float("inf"),
) -> tuple[Tensor, Tensor | None]:
    """Counts the negatives at or above each edge; with ``values``, computes their gradient.

    A score is a negative if its row's class is >= 0 and differs from the score's column. A negative
    belongs to two segments: the segment of its column, and segment C of all columns. Its gradient
    is the sum, over both, of the value of the highest edge at or below the score (0 without one).

    Args:
        scores: ``(N, C)``, float32 or half precision, contiguous or strided.
        gt_classes: ``(N,)`` int64, contiguous.
        edges: ``(E,)`` int64, rising keys (:mod:`.sort_keys`) of segments and float32 edges. Edges
            in segments above C have the count 0.
        values: ``(E,)`` float64, one per edge; None: no gradient is computed.
        dtype: of the gradient. It is summed in float64; half precision is rounded from float32.
        max_score: no score is above ``max_score``. A hint that saves time on a CPU.

    Returns:
        Counts ``(E,)`` int64, and the gradient ``(N, C)`` or None; it is 0 for scores that are not
        negatives. Both are on the device of the scores; the function does not wait for the device.

    Example:
        >>> scores = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> gt_classes = torch.tensor([0, 2])  # so 0.0 is positive and the others are negatives
        >>> edges = make_keys(torch.tensor([0, 1]), torch.tensor([1.5, 2.5]))  # in columns 0 and 1
        >>> bin_negatives(scores, gt_classes, edges, torch.tensor([5.0, 7.0]).double())
        (tensor([1, 1]), tensor([[0., 0.],
                [5., 7.]]))
    """
    backend = _backend(scores.device)
    return backend.bin_negatives(scores, gt_classes, edges, values, dtype, max_score)


@functools.cache
def _backend(device: torch.device):  # type: ignore[no-untyped-def]  # a module
    """Returns the fastest backend; if it fails, logs one line and returns the reference."""
    if device.type == "cpu":
        return cpu if cpu.library() else reference
    if device.type != "cuda" or os.environ.get("RAMBO_DET_TRITON") == "0":
        return reference
    try:
        from . import triton_kernel

        _self_test(triton_kernel, device)
    except Exception as error:  # from Triton, its compilers or the driver
        logging.getLogger(__name__).warning(
            "The loss is many times slower on this GPU than it could be: its Triton kernel does "
            "not run (%s: %s). Install the triton version that matches this torch, and a C "
            "compiler. RAMBO_DET_TRITON=0 silences this warning.",
            type(error).__name__, " ".join(str(error).split())[:200],
        )  # fmt: skip
        return reference
    return triton_kernel


def _self_test(backend, device: torch.device) -> None:  # type: ignore[no-untyped-def]  # a module
    """Raises the error of a backend that cannot run; RuntimeError if its numbers are wrong."""
    scores = torch.tensor([[0.0, 1.0], [2.0, 0.5], [1.0, 2.0]], device=device)
    gt_classes = torch.tensor([0, 2, 1], device=device)
    segments = torch.tensor([0, 0, 2, 2], device=device)
    edges = make_keys(segments, torch.tensor([0.25, 0.75, 0.5, 1.5], device=device))
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64, device=device)
    for options in ((None,), (values, torch.float32), (values, torch.float64)):
        counts, grad = backend.bin_negatives(scores, gt_classes, edges, *options)
        want, want_grad = reference.bin_negatives(scores, gt_classes, edges, *options)
        same_grad = want_grad is None or torch.equal(grad, want_grad)
        if not (same_grad and torch.equal(counts, want)):
            raise RuntimeError("the results of the backend differ from those of plain PyTorch")
