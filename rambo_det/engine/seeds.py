"""Seeds random generators from a run's seed and progress, so that no generator state is saved."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import torch

from ..errors import InputError

#: Purposes of random numbers. A key contains its purpose, so that keys of two purposes differ.
STEP, IMAGE, ORDER = range(3)


def run_seed(given: int, earlier: int | None = None) -> int:
    """Returns the seed of a run, the same in all processes; every process must call this function.

    A resumed run has the ``earlier`` seed. Others have the ``given`` seed; below 0, one is drawn.
    """
    if given >= 2**32:
        raise InputError(f"SEED (LazyConfig: train.seed) must be below 2**32, got {given}")
    choices = (-1 if earlier is None else earlier, given, comm.shared_random_seed())
    seed = int(next(choice for choice in choices if choice >= 0))
    return int(comm.all_gather(seed)[0])  # perhaps only the main process knows ``earlier``


def seed_generators(*key: int, seed_torch: Callable[[int], Any] = torch.manual_seed) -> None:
    """Seeds the generators of torch, numpy and random with the key."""
    seeds = [int(x) for x in np.random.SeedSequence(key).generate_state(3)]
    seed_torch(seeds[0])
    np.random.seed(seeds[1])
    random.seed(seeds[2])


@contextmanager
def seeded(seed: int, *key: int) -> Iterator[None]:
    """Seeds the CPU generators with the arguments; restores their states when the context ends."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the GPUs too.
        seed_generators(seed, *key, seed_torch=torch.default_generator.manual_seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
