"""Scores and targets of the last τ batches, kept to make each class's AP less biased."""

# No `from __future__ import annotations`: torch.jit.script reads the tensors' as they are.
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .counting import Thresholds, counting_for
from .keys import missed_of
from .processes import Processes

_EMPTY = -1
#: Where there is no negative: below all that are, yet no product of it is NaN.
_LOWEST = -1e38
#: What differs from process to process.
_OF_PROCESS = ("positives", "scores", "lists", "counts")
#: What a checkpoint has.
_SAVED = (*_OF_PROCESS, "written", "num_classes")


class Stored(NamedTuple):
    """What a memory holds, batch by batch: its tensors, until the next batch is written.

    Attributes:
        positives: ``(τ, size // 4)`` int64, keys (:mod:`.keys`); below 0: none.
        scores: ``(τ, size)`` float32, of the negatives.
        lists: ``(τ, size)`` int32, the classes of the negatives.
        counts: ``(τ,)`` int64, how many negatives there are of each batch.
    """

    positives: Tensor
    scores: Tensor
    lists: Tensor
    counts: Tensor

    def keys(self) -> Tensor:
        """``(M,)`` int64 on the CPU, of all positives."""
        positives = self.positives.cpu()
        return positives[positives != _EMPTY]

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Scores and classes ``(K,)`` of all negatives; below all others where there is none."""
        # Up to the longest row: no work for what was never filled. A GPU would be waited for.
        used = self.scores.shape[1] if self.scores.is_cuda else int(self.counts.max())
        return self.scores[:, :used].flatten(), self.lists[:, :used].flatten()


class ScoreMemory(nn.Module):
    """A ring of the last τ batches' scores, without gradient (RaMBO, Sec. 4.3).

    Of each batch up to ``size // 4`` positives and ``size`` negatives, those that lie highest above
    the lowest positive of their class. Tensors of a fixed shape with counts, so that a checkpoint
    brings them back whole: ``τ · 10 size`` bytes. They move with the module, but are no buffers:
    DistributedDataParallel, unless told not to, gives those of process 0 to all before each step.

    Where processes rank their batches as one (:mod:`.processes`), all remember the same positives,
    and each the negatives of its own batches; else each its own of both.

    Args:
        length: τ >= 0, the number of batches; 0 keeps nothing.
        size: the number of negatives kept of one batch.
        persistent: whether the tensors are entries of ``state_dict``. If not, they travel in the
            state dict's metadata (``state_dict()._metadata``): saved and loaded with it, but no
            unexpected key to a model that has no such memory.
        num_classes: C.
        most_missed: how many IoU thresholds a positive can miss.

    What was remembered with another τ, size, number of classes or, as far as its positives show it,
    of thresholds is not taken over from a state dict: it is of another run.
    """

    positives: Tensor
    scores: Tensor
    lists: Tensor
    counts: Tensor
    written: Tensor
    num_classes: Tensor

    def __init__(
        self,
        length: int,
        size: int = 1 << 13,
        persistent: bool = True,
        num_classes: int = 0,
        most_missed: int = 0,
    ) -> None:
        super().__init__()
        self.length = length
        self._persistent, self._classes, self._most_missed = persistent, num_classes, most_missed
        self._collected: tuple[int, dict[str, Tensor]] | None = None
        self._lost = 0
        self.positives = torch.full((length, size // 4), _EMPTY, dtype=torch.int64)
        self.scores = torch.full((length, size), _LOWEST, dtype=torch.float32)
        self.lists = torch.zeros((length, size), dtype=torch.int32)
        self.counts = torch.zeros(length, dtype=torch.int64)
        self.written = torch.zeros((), dtype=torch.int64)
        self.num_classes = torch.tensor(num_classes)

    def tensors(self) -> dict[str, Tensor]:
        """All that is kept, by name, as it is."""
        return {name: getattr(self, name) for name in _SAVED}

    def collect(self) -> None:
        """Has what all processes remember be part of the state dict that is taken next.

        A collective. Without it, a state dict holds that of the process that takes it.
        """
        processes = Processes()
        if self.length and processes.size > 1:
            shards = {name: processes.stack(getattr(self, name)) for name in _OF_PROCESS}
            self._collected = int(self.written), shards

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._as_buffers()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if self._persistent or metadata is None:
            return
        saved = {name: value.clone() for name, value in self.tensors().items()}
        if self._collected and self._collected[0] == int(self.written):
            saved.update(self._collected[1])
        elif self.length:
            metadata[prefix[:-1]]["processes"] = Processes().size
        metadata[prefix[:-1]]["memory"] = saved

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        entries = self._as_buffers()
        entries._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if self._persistent:
            found = [prefix + name in state_dict for name in _SAVED]
            loaded = dict(entries.named_buffers())  # others with load_state_dict(assign=True)
            # Some alone: who loads has dropped those that do not fit.
            if any(found):
                fits = all(found) and self._fits(loaded)
                self._take(loaded if fits else _empty(self).tensors())
            return
        saved = local_metadata.get("memory", {})
        if saved.keys() != set(_SAVED) or not self._fits(saved):
            return
        processes = Processes()
        self._take({**saved, **_share(saved, processes.rank, processes.size)})
        self._lost = local_metadata.get("processes", 1) - 1 if self.written else 0

    def _fits(self, saved: dict[str, Tensor]) -> bool:
        own, missed = self.tensors(), missed_of(saved["positives"].cpu())
        return (
            all(saved[k].shape[-own[k].dim() :] == own[k].shape for k in own)
            and int(saved["num_classes"]) == self._classes
            # A key that misses more thresholds than there are would be of no list.
            and not bool((missed > self._most_missed).any())
        )

    def _as_buffers(self) -> nn.Module:
        """A module that saves and loads them, as torch does buffers."""
        module = nn.Module()
        for name, value in self.tensors().items():
            module.register_buffer(name, value, persistent=self._persistent)
        return module

    def _take(self, saved: dict[str, Tensor]) -> None:
        for name, own in self.tensors().items():
            own.copy_(saved[name])

    def _apply(self, fn: Any, recurse: bool = True) -> "ScoreMemory":
        super()._apply(fn, recurse)
        # They move with the model to a device, but are never rounded with its weights.
        for name, value in self.tensors().items():
            setattr(self, name, value.to(fn(value).device))
        return self

    @property
    def fill(self) -> float:
        """The fraction of the τ batches that are filled; 0 where τ is 0."""
        return min(int(self.written), self.length) / self.length if self.length else 0.0

    def stored(self) -> Stored | None:
        """All that is remembered; None where τ is 0."""
        if self.length == 0:
            return None
        return Stored(self.positives, self.scores, self.lists, self.counts)

    @torch.no_grad()
    def write(
        self,
        scores: Tensor,
        gt_classes: Tensor,
        positives: Tensor | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        """Puts a batch in the place of the oldest one.

        Args:
            scores: ``(N, C)``, float32.
            gt_classes: ``(N,)`` integers; ``C`` is background, below 0 is ignored.
            positives: ``(P,)`` keys of the positives, of all processes; None: those of the scores.
            thresholds: those of each class's positives, and of all; None: there are none.
        """
        if self.length == 0:
            return
        if self._lost:  # told here, as who loads a model to evaluate it loses nothing
            self._tell_of_loss()
        slot = int(self.written) % self.length
        gt_classes = gt_classes.long().contiguous()
        if positives is None:
            positives = counting_for(scores.device).find(scores, gt_classes)[2]
        row = self.positives[slot].fill_(_EMPTY)
        if positives.shape[0] > row.shape[0]:
            # Evenly over the batch: the highest alone would have too good a precision.
            place = torch.arange(row.shape[0], device=positives.device) * positives.shape[0]
            positives = positives.index_select(0, place // row.shape[0])
        row[: positives.shape[0]] = positives
        counting, size = counting_for(scores.device), self.scores.shape[1]
        self._put_negatives(slot, *counting.highest(scores, gt_classes, thresholds, size))
        self.written.add_(1)

    def _tell_of_loss(self) -> None:
        if Processes().rank == 0:
            logging.getLogger(__name__).warning(
                "The checkpoint has the remembered negatives of 1 of %d processes: until the "
                "memory has been filled anew, in %d iterations, the losses are not those of the "
                "run that was interrupted. To save them all, register rambo_det.engine.memories."
                "CollectMemories(PERIOD) in every process, before the PeriodicCheckpointer",
                self._lost + 1, self.length,
            )  # fmt: skip
        self._lost = 0

    def _put_negatives(self, slot: int, scores: Tensor, lists: Tensor) -> None:
        size = self.scores.shape[1]
        if scores.shape[0] > size:
            scores, highest = scores.topk(size, sorted=False)
            lists = lists.index_select(0, highest)
        num = scores.shape[0]
        self.scores[slot, :num], self.scores[slot, num:] = scores, _LOWEST
        self.lists[slot, :num] = lists
        self.counts[slot] = num


def _empty(memory: ScoreMemory) -> ScoreMemory:
    length, size = memory.scores.shape
    return ScoreMemory(length, size, num_classes=memory._classes).to(memory.scores.device)


def _share(saved: dict[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
    """Of what W processes remember, that for the one of number ``rank`` of ``size``.

    Args:
        saved: by name the buffers of one process, or of all stacked.
    """
    shards = {name: saved[name] for name in _OF_PROCESS}
    if shards["counts"].dim() == 1:
        shards = {name: shard[None] for name, shard in shards.items()}
    if shards["positives"].dim() == 2:  # of a version that saved those of one process
        shards["positives"] = shards["positives"][None]
    # Where they rank together all have the same.
    positives = shards["positives"][rank % shards["positives"].shape[0]]
    theirs = {name: shard[rank::size] for name, shard in shards.items()}
    if theirs["counts"].shape[0] == 1:
        return {**{name: shard[0] for name, shard in theirs.items()}, "positives": positives}
    mine = ScoreMemory(*shards["scores"].shape[1:])
    for slot in range(mine.length):
        scores, lists = theirs["scores"][:, slot].flatten(), theirs["lists"][:, slot].flatten()
        there = scores > _LOWEST
        mine._put_negatives(slot, scores[there], lists[there])
    return {**{name: getattr(mine, name) for name in _OF_PROCESS}, "positives": positives}
