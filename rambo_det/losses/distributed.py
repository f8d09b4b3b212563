"""Collectives of the processes that rank their batches as one.

To rank a batch that is spread over processes, each process needs the scores of all P positives. For
each positive it also needs the number of negatives above, summed over the processes. So the
processes exchange O(P) numbers. Negatives are not exchanged.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """The processes whose batches are ranked as one.

    The methods are collectives: every process calls them, even if its batch is empty. Tensors stay
    on their device.

    Args:
        together: whether to rank with the other processes of ``torch.distributed``, if it is
            initialized. False: this process ranks alone.

    Attributes:
        size, index: number of processes, and the index of this process.
        bytes_sent: number of bytes that this process has passed to collectives so far.
    """

    def __init__(self, together: bool = True) -> None:
        together = together and dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.index = dist.get_rank() if together else 0
        self.bytes_sent = 0

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Returns ``(size, ...)``: the tensors of all processes, which must have the same shape."""
        if self.size == 1:
            return tensor[None]
        self.bytes_sent += tensor.nbytes
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    def all_gather_uneven(self, tensor: Tensor, lengths: list[int]) -> Tensor:
        """Concatenates the 1-D tensors of all processes, whose lengths are ``lengths``."""
        if self.size == 1 or max(lengths) == 0:
            return tensor
        padded = torch.nn.functional.pad(tensor, (0, max(lengths) - tensor.shape[0]))
        gathered = self.all_gather(padded)
        return torch.cat([part[:n] for part, n in zip(gathered, lengths, strict=True)])

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of the tensor over the processes; may overwrite ``tensor``."""
        if self.size > 1 and tensor.numel():
            self.bytes_sent += tensor.nbytes
            tensor = tensor.contiguous()
            dist.all_reduce(tensor)
        return tensor
