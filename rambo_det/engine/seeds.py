"""A run's randomness as a function of its seed and of where it stands, so that none is saved."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import torch

from ..errors import InputError

#: What is drawn for: keys of the three must never be equal.
STEP, IMAGE, ORDER = range(3)


def run_seed(given: int, earlier: int | None = None) -> int:
    """The seed of a run, the same in all of its processes, all of which must call this.

    It is that of the ``earlier`` run that goes on, else the ``given`` one; below 0 one is drawn.
    """
    if given >= 2**32:
        raise InputError(f"SEED {given}: it must be below 2**32, for numpy")
    choices = (-1 if earlier is None else earlier, given, comm.shared_random_seed())
    seed = int(next(choice for choice in choices if choice >= 0))
    return int(comm.all_gather(seed)[0])  # the main process may be the only one that sees files


def seed_generators(*key: int, seed_torch: Callable[[int], Any] = torch.manual_seed) -> None:
    """Seeds torch, numpy and random by the key."""
    seeds = [int(x) for x in np.random.SeedSequence(key).generate_state(3)]
    seed_torch(seeds[0])
    np.random.seed(seeds[1])
    random.seed(seeds[2])


@contextmanager
def seeded(seed: int, *key: int) -> Iterator[None]:
    """Inside, what is drawn on the CPU depends on the arguments alone; outside, nothing changes."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the GPUs too.
        seed_generators(seed, *key, seed_torch=torch.default_generator.manual_seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
