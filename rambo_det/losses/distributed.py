"""The processes that share a batch, and the little that travels between them.

To rank a batch that is spread over processes, each of them needs the scores of all positives and,
for each positive, the negatives above it summed over the processes: O(P) numbers. The negatives
stay where they are.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """The processes whose batches are ranked as one.

    The methods are collectives: each process calls them, also one whose batch is empty. Tensors are
    exchanged on the device that they are on.

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

    def all_gather(self, tensor: Tensor) -> Tensor:
        """``(size, ...)``: the tensors of all processes, which have one shape."""
        if self.size == 1:
            return tensor[None]
        self.bytes_sent += tensor.nbytes
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    def all_gather_uneven(self, tensor: Tensor, lengths: list[int]) -> Tensor:
        """The tensors of all processes, one after the other, of ``lengths`` along dimension 0."""
        if self.size == 1 or max(lengths) == 0:
            return tensor
        padded = torch.nn.functional.pad(tensor, (0, max(lengths) - tensor.shape[0]))
        gathered = self.all_gather(padded)
        return torch.cat([part[:n] for part, n in zip(gathered, lengths, strict=True)])

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size > 1 and tensor.numel():
            self.bytes_sent += tensor.nbytes
            tensor = tensor.contiguous()
            dist.all_reduce(tensor)
        return tensor
