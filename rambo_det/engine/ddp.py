"""Data-parallel models of Detectron2's trainers where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from detectron2.engine import defaults


def distributed_on(device: str) -> AbstractContextManager[None]:
    """Inside, the trainers that are made fit models on that device.

    DefaultTrainer gives DistributedDataParallel the number of a GPU, which that refuses for a model
    on the CPU.
    """
    return nullcontext() if device.startswith("cuda") else _without_device_ids()


@contextmanager
def _without_device_ids() -> Iterator[None]:
    stock = defaults.create_ddp_model
    defaults.create_ddp_model = partial(stock, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = stock
