"""A memory of the scores of the last τ batches, which makes the AP of each class less biased."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from .distributed import Processes
from .inputs import RankingInputs
from .sort_keys import EMPTY_KEY, key_scores, make_keys

#: The tensors that can differ between processes, and all tensors of a checkpoint.
_OF_PROCESS = ("positives", "negatives")
_SAVED = (*_OF_PROCESS, "written", "num_classes")


class ScoreMemory(nn.Module):
    """A ring buffer of the scores of the last τ batches, without gradient (RaMBO, Sec. 4.3).

    It keeps up to ``size // 4`` positives and ``size`` negatives of each batch. These negatives are
    the highest above the lowest positive of their class. The memory takes ``10 τ size`` bytes.

    The tensors move with the module, but are not buffers: DistributedDataParallel would overwrite
    buffers with those of process 0 before each step. The tensors are saved and loaded in the
    metadata of the state dict (``state_dict()._metadata``), whole. So a model without a memory
    finds no unexpected keys.

    If the processes rank their batches as one, all processes remember the same positives. Each
    process remembers the negatives of its own batches.

    Args:
        length: τ >= 0, the number of batches; 0 keeps nothing.
        size: the number of negatives kept per batch.
        num_classes: C.

    A state with another length, size, number of classes or format is not loaded; one line in the
    log says so.
    """

    positives: Tensor  # (τ, size // 4) int64 keys, rising in each row; EMPTY_KEY: unused
    negatives: Tensor  # (τ, size) int64 keys, likewise
    written: Tensor
    num_classes: Tensor

    def __init__(self, length: int, size: int = 1 << 13, num_classes: int = 0) -> None:
        super().__init__()
        self.length = length
        self._gathered: tuple[int, dict[str, Tensor]] | None = None
        self._is_loaded = False
        self.positives = torch.full((length, size // 4), EMPTY_KEY)
        self.negatives = torch.full((length, size), EMPTY_KEY)
        # These two stay on the CPU: every step reads them, which would wait for a GPU.
        self.written = torch.zeros((), dtype=torch.int64, device="cpu")
        self.num_classes = torch.tensor(num_classes, device="cpu")

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of a checkpoint by name, not copied."""
        return {name: getattr(self, name) for name in _SAVED}

    @property
    def fill_fraction(self) -> float:
        """The filled fraction of the τ batches; 0 if τ is 0."""
        return min(int(self.written), self.length) / self.length if self.length else 0.0

    def reset_if_loaded(self) -> None:
        """Empties the memory if it was loaded and not written since; for the start of a new run."""
        if self._is_loaded:
            self.positives.fill_(EMPTY_KEY)
            self.negatives.fill_(EMPTY_KEY)
            self.written.zero_()
            self._is_loaded = False

    @torch.no_grad()
    def write(self, inputs: RankingInputs, lowest: Tensor) -> None:
        """Replaces the oldest batch by a new one.

        ``lowest`` is the lowest threshold of each class, ``(C,)`` float32. It is infinite for a
        class without one; the lowest threshold of the others, or 0, then replaces it.
        """
        slot = int(self.written) % self.length
        number, capacity = inputs.pos_keys.shape[0], self.positives.shape[1]
        # Takes positives evenly from the batch: the highest alone would make precision too high.
        chosen = torch.arange(min(number, capacity), device=inputs.pos_keys.device)
        chosen = chosen * max(number, capacity) // capacity
        self.positives[slot].fill_(EMPTY_KEY)[: len(chosen)] = inputs.pos_keys[chosen].sort().values
        lowest_of_all = lowest.min().nan_to_num(posinf=0.0)
        lowest = torch.where(lowest.isfinite(), lowest, lowest_of_all)
        negatives = highest_negatives(inputs, lowest, self.negatives.shape[1]).sort().values
        self.negatives[slot].fill_(EMPTY_KEY)[: len(negatives)] = negatives
        self.written.add_(1)
        self._is_loaded = False

    def all_gather_for_checkpoint(self) -> None:
        """Gathers the memories of all processes for a ``state_dict()`` before the next batch.

        A collective. Without it the state dict has only the negatives of its own process.
        """
        processes = Processes()
        if self.length and processes.size > 1:
            shards = {name: processes.all_gather(getattr(self, name)) for name in _OF_PROCESS}
            self._gathered = int(self.written), shards

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        metadata = getattr(destination, "_metadata", None)
        if metadata is None:
            return
        saved = {name: value.clone() for name, value in self.tensors().items()}
        if self._gathered and self._gathered[0] == int(self.written):
            saved.update(self._gathered[1])
        metadata[prefix[:-1]]["memory"] = saved

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        saved = local_metadata.get("memory", {})
        if self.length and saved.keys() == set(_SAVED) and self._fits(saved):
            processes = Processes()
            saved = {**saved, **_local_part(saved, processes.index, processes.size)}
            for name, tensor in self.tensors().items():
                tensor.copy_(saved[name])
            self._is_loaded, self._gathered = True, None
        elif self.length and saved:
            logging.getLogger(__name__).info(
                "The score memory of the checkpoint is not loaded: its length, size, number of "
                "classes or format is another one"
            )

    def _fits(self, saved: dict[str, Tensor]) -> bool:
        shapes = {name: tensor.shape for name, tensor in self.tensors().items()}
        same = all(saved[name].shape[-len(shape) :] == shape for name, shape in shapes.items())
        return same and int(saved["num_classes"]) == int(self.num_classes)

    def _apply(self, fn: Any, recurse: bool = True) -> "ScoreMemory":
        super()._apply(fn, recurse)
        for name in _OF_PROCESS:
            value = getattr(self, name)
            device = fn(value).device
            if value.is_meta:  # a meta tensor has no values to move
                value = torch.full_like(value, EMPTY_KEY, device=device)
            setattr(self, name, value.to(device))
        return self


def highest_negatives(inputs: RankingInputs, lowest: Tensor, size: int) -> Tensor:
    """Returns ``(K,)`` int64 keys, K <= size, of the negatives highest above ``lowest``.

    ``lowest`` is ``(C,)`` float32, by class. With fewer negatives, some keys are ``EMPTY_KEY``.
    """
    heights = inputs.scores - lowest
    heights.masked_fill_((inputs.gt_classes < 0)[:, None], -torch.inf)
    # Assigning a Python number would copy it to the GPU and wait for the GPU.
    heights[inputs.pos_rows, inputs.pos_columns] = heights.new_full((), -torch.inf)
    highest, places = heights.flatten().topk(min(size, heights.numel()), sorted=False)
    num_classes = inputs.scores.shape[1]
    rows, columns = places // num_classes, places % num_classes
    keys = make_keys(columns, inputs.scores[rows, columns].float())
    return keys.masked_fill_(highest.isneginf(), EMPTY_KEY)


def _local_part(saved: dict[str, Tensor], index: int, size: int) -> dict[str, Tensor]:
    """Returns what process ``index`` of ``size`` loads from the memories that W processes saved.

    Args:
        saved: tensors of one process, or the stacked tensors of W processes.
    """
    positives, negatives = (saved[n].view(-1, *saved[n].shape[-2:]) for n in _OF_PROCESS)
    # Merges every size-th memory. Without one for this process, only empty keys are left.
    parts = torch.cat([negatives[index::size], torch.full_like(negatives[:1], EMPTY_KEY)])
    keys = parts.transpose(0, 1).flatten(1)  # (τ, W' * size)
    scores = key_scores(keys).masked_fill(keys == EMPTY_KEY, -torch.inf)
    highest = keys.gather(1, scores.topk(negatives.shape[2], dim=1).indices)
    # Processes that rank together all have the same positives. Old states may be unsorted.
    local = {"positives": positives[index % len(positives)], "negatives": highest}
    return {name: tensor.sort().values for name, tensor in local.items()}
