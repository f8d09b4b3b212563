"""Scores and targets of the last τ batches, kept to make each class's AP less biased."""

# No `from __future__ import annotations`: torch.jit.script reads the buffers' as they are.
from typing import Any

import torch
from torch import Tensor, nn

from .keys import make_keys
from .processes import Processes
from .targets import Targets, positions_of

_EMPTY = -1
#: Scores looked at to guess how high the highest are.
_SAMPLE = 1 << 14


class ScoreMemory(nn.Module):
    """A ring of the last τ batches' scores, without gradient (RaMBO, Sec. 4.3).

    Held as sort keys (:mod:`.keys`, float32 scores): of each batch up to ``size // 8`` positives
    and ``size`` negatives, those that rank highest against the positives of their class. Buffers of
    a fixed shape with a count, so that a checkpoint brings them back whole: ``8 τ · 9/8 size``
    bytes.

    Where processes rank their batches as one (:mod:`.processes`), all remember the same positives,
    and each the negatives of its own batches.

    Args:
        length: τ >= 0, the number of batches; 0 keeps nothing.
        size: the number of negatives kept of one batch.
        persistent: whether the buffers are entries of ``state_dict``. If not, they travel in the
            state dict's metadata (``state_dict()._metadata``): saved and loaded with it, but no
            unexpected key to a model that has no such memory.
    """

    positives: Tensor
    negatives: Tensor
    written: Tensor

    def __init__(self, length: int, size: int = 1 << 15, persistent: bool = True) -> None:
        super().__init__()
        self.length = length
        self._persistent = persistent
        self._collected: tuple[int, Tensor] | None = None
        empty = torch.full((length, size), _EMPTY, dtype=torch.int64)
        self.register_buffer("positives", empty[:, : size // 8].clone(), persistent=persistent)
        self.register_buffer("negatives", empty, persistent=persistent)
        self.register_buffer("written", torch.zeros((), dtype=torch.int64), persistent=persistent)

    def collect(self) -> None:
        """Has the negatives of all processes be part of the state dict that is taken next.

        A collective. Without it, a state dict holds those of the process that takes it.
        """
        if self.length:
            self._collected = int(self.written), Processes().stack(self.negatives)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if self._persistent or metadata is None:
            return
        saved = {name: buffer.clone() for name, buffer in self.named_buffers()}
        if self._collected and self._collected[0] == int(self.written):
            saved["negatives"] = self._collected[1]
        metadata[prefix[:-1]]["memory"] = saved

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        saved = local_metadata.get("memory", {})
        own = dict(self.named_buffers())
        if self._persistent or saved.keys() != own.keys():
            return
        # Of another τ, size or number of classes: of another run, which this one starts without.
        if any(saved[k].shape[-own[k].dim() :] != own[k].shape for k in own):
            return
        processes = Processes()
        saved = {**saved, "negatives": _share(saved["negatives"], processes.rank, processes.size)}
        for name, buffer in own.items():
            buffer.copy_(saved[name])

    @property
    def fill(self) -> float:
        """The fraction of the τ batches that are filled; 0 where τ is 0."""
        return min(int(self.written), self.length) / self.length if self.length else 0.0

    def stored(self) -> tuple[Tensor, Tensor] | None:
        """Keys of the remembered positives ``(M,)`` and negatives ``(τ, size)``, rows sorted."""
        if self.length == 0:
            return None
        return self.positives[self.positives != _EMPTY], self.negatives

    @torch.no_grad()
    def write(self, scores: Tensor, gt_classes: Tensor, positives: Tensor | None = None) -> None:
        """Puts a batch in the place of the oldest one.

        Args:
            scores: ``(N, C)``, float32 or half precision.
            gt_classes: ``(N,)`` integers; ``C`` is background, below 0 is ignored.
            positives: ``(P,)`` keys of the positives, of all processes; None: those of the scores.
        """
        if self.length == 0:
            return
        slot = self.written % self.length
        if positives is None:
            targets = Targets.find(gt_classes, scores.shape[1])
            cols = targets.cols
            positives = make_keys(cols, scores[targets.rows, cols].float())
        self._put(self.positives, slot, positives)
        rows, cols = _highest_negatives(scores, gt_classes, self.negatives.shape[1])
        self._put(self.negatives, slot, make_keys(cols, scores[rows, cols].float()))
        self.written += 1

    @staticmethod
    def _put(ring: Tensor, slot: Tensor, keys: Tensor) -> None:
        size = ring.shape[1]
        if keys.shape[0] > size:
            keys = keys[(keys & 0xFFFFFFFF).topk(size, sorted=False).indices]
        row = torch.full((size,), _EMPTY, dtype=torch.int64, device=ring.device)
        row[size - keys.shape[0] :] = keys.sort().values
        ring[slot] = row


def _share(saved: Tensor, rank: int, size: int) -> Tensor:
    """Of the negatives ``(τ, K)``, or ``(W, τ, K)`` of W processes, those for one of ``size``."""
    shards = saved.view(-1, *saved.shape[-2:])[rank::size]
    if shards.shape[0] == 1:
        return shards[0]
    if shards.shape[0] == 0:
        return torch.full_like(saved.view(-1, *saved.shape[-2:])[0], _EMPTY)
    keys = torch.cat(list(shards), dim=1)
    codes = torch.where(keys == _EMPTY, _EMPTY, keys & 0xFFFFFFFF)
    highest = codes.topk(saved.shape[-1], dim=1, sorted=False).indices
    return keys.gather(1, highest).sort(dim=1).values


def _highest_negatives(scores: Tensor, gt_classes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of negatives, among them the ``size`` highest; of all where they fit."""
    num_scores = scores.numel()
    if num_scores > 4 * size:
        # A sample guesses a score that somewhat more than `size` reach. If fewer negatives do, all
        # are taken: the guess costs time, never exactness.
        rows = torch.linspace(0, scores.shape[0] - 1, max(_SAMPLE // scores.shape[1], 1))
        sample = scores.index_select(0, rows.long().to(scores.device)).float().view(-1)
        keep = int(sample.shape[0] * (1 - 1.1 * size / num_scores)) - _SAMPLE // 200
        if keep >= 1:
            rows, cols = _negatives_from(scores, gt_classes, sample.kthvalue(keep).values)
            if rows.shape[0] >= size:
                return rows, cols
    return _negatives_from(scores, gt_classes, None)


def _negatives_from(
    scores: Tensor, gt_classes: Tensor, lowest: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows and columns of the negatives at or above ``lowest``, or of all."""
    mask = torch.ones_like(scores, dtype=torch.bool) if lowest is None else scores >= lowest
    if mask.is_contiguous():
        position = positions_of(mask.view(-1))
        rows = torch.div(position, scores.shape[1], rounding_mode="floor")
        cols = position - rows * scores.shape[1]
    else:
        rows, cols = mask.nonzero(as_tuple=True)
    labels = gt_classes[rows]
    negative = (labels >= 0) & (labels != cols)
    return rows[negative], cols[negative]
