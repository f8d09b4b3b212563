"""The processes that share a batch, and the little that has to travel between them.

The ranking of a batch that is spread over processes needs the scores of all positives in each of
them, and for each positive the number of negatives above it, summed over the processes: O(P)
numbers. Negatives stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Gathered:
    """Positives of all processes.

    Attributes:
        keys: ``(P,)`` int64 (:mod:`.keys`) on the CPU, those of process 0 first.
        first: where this process's own begin.
        finite: whether all scores of all processes are.
    """

    keys: Tensor
    first: int
    finite: bool


class Processes:
    """The processes whose batches are ranked as one.

    Every method is a collective: each process has to call it, also one whose batch is empty.

    Args:
        together: whether to rank with the other processes of ``torch.distributed``, if there are
            any; else this process alone.

    Attributes:
        size, rank: number of processes, and which of them this is.
        bytes_sent: what this process has handed to collectives so far.
    """

    def __init__(self, together: bool = True) -> None:
        together = together and dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.bytes_sent = 0
        self._device = torch.device("cpu")  # where the scores are; NCCL exchanges nothing else

    def gather(self, keys: Tensor, finite: bool) -> Gathered:
        """The positives of all processes; ``keys`` ``(P of this process,)`` int64 are its own."""
        if self.size == 1:
            return Gathered(keys.cpu(), 0, finite)
        self._device = keys.device
        header = torch.tensor([keys.shape[0], finite], dtype=torch.int64, device=keys.device)
        headers = torch.stack(self._all(header)).tolist()
        counts = [count for count, _ in headers]
        longest = max(counts)
        padded = torch.nn.functional.pad(keys, (0, longest - keys.shape[0]))
        found = self._all(padded) if longest else [keys] * self.size
        keys = torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])
        return Gathered(keys.cpu(), sum(counts[: self.rank]), all(fine for _, fine in headers))

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over the processes of int64 ``counts``, on the CPU."""
        if self.size > 1 and counts.numel():
            self.bytes_sent += counts.numel() * counts.element_size()
            sums = counts.to(self._device)
            dist.all_reduce(sums)
            return sums.cpu()
        return counts

    def stack(self, tensor: Tensor) -> Tensor:
        """``(size, ...)``: the tensors, of one shape, of all processes."""
        return torch.stack(self._all(tensor) if self.size > 1 else [tensor])

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self.bytes_sent += tensor.numel() * tensor.element_size()
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous())
        return found
