"""Training batches that are the same whether a run was interrupted or not."""

import logging
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from ..data.mapper import NamingMapper
from ..errors import InputError
from .seeds import IMAGE, ORDER, run_seed, seeded

#: An image of the data set, and its place in the stream of all images of all processes.
_Place = tuple[int, int]
_TRIES = 100


class ResumableLoader:
    """Endless batches of images; batch i is the same in every run of the same seed.

    What Detectron2's loader gives, with two differences: images are grouped to batches before they
    are read, so that a run can start at any batch, and the augmentation of an image depends on the
    seed and on its place in the stream, not on the worker that reads it.

    Args:
        dataset: a list of dicts, or a map-style dataset of them.
        mapper: from such a dict to what the model takes; if it gives None, another image is read.
        sampler: gives this process's share of an endless stream of indices; None: shuffled.
        total_batch_size: over all processes.
        aspect_ratio_grouping: a batch is of images that are all wide or all not. For that a
            dataset that is no list is read once, whole, for the sizes of its images.
        num_workers, collate_fn: as those of Detectron2's ``build_detection_train_loader``.
        seed: below 0: any.
        **kwargs: passed to DataLoader.

    Attributes:
        seed: the seed, >= 0.
        start: the number of the first batch; read when that is asked for.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        mapper: Callable[[Any], Any] | None = None,
        sampler: Sampler | None = None,
        total_batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        collate_fn: Callable[[list], Any] | None = None,
        seed: int = -1,
        **kwargs: Any,
    ) -> None:
        self.seed = run_seed(seed)
        self.start = 0
        world_size = comm.get_world_size()
        self._batch_size, rest = divmod(total_batch_size, world_size)
        if rest or total_batch_size < 1:
            raise InputError(
                f"{total_batch_size} images per batch (SOLVER.IMS_PER_BATCH, total_batch_size) "
                f"cannot be divided among {world_size} processes"
            )
        if sampler is None:
            with seeded(self.seed, ORDER):
                sampler = TrainingSampler(len(dataset), seed=comm.shared_random_seed())
        self._sampler = sampler
        self._wide = _wide_images(dataset) if aspect_ratio_grouping else None
        self._images = _Images(dataset, mapper, self.seed)
        collate_fn = collate_fn or trivial_batch_collator
        self._arguments = {**kwargs, "num_workers": num_workers, "collate_fn": collate_fn}

    def __iter__(self) -> Iterator[Any]:
        # A generator: `start` is read and workers begin when the first batch is asked for. Some
        # trainers make the iterator before they know where the run starts.
        yield from DataLoader(
            self._images,
            batch_sampler=islice(self.batches(), self.start, None),
            # DataLoader draws a number for its workers, which must not be one of the model's.
            generator=torch.Generator().manual_seed(self.seed),
            **self._arguments,
        )

    def batches(self) -> Iterator[list[_Place]]:
        """The images of each batch of this process, from the first on."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        places = ((index, rank + i * world_size) for i, index in enumerate(self._sampler))
        if self._wide is None:
            yield from BatchSampler(places, self._batch_size, drop_last=True)
            return
        wide = self._wide
        shapes = ({"width": int(wide[place[0]]), "height": 0, "place": place} for place in places)
        for batch in AspectRatioGroupedDataset(shapes, self._batch_size):
            yield [shape["place"] for shape in batch]


def train_loader(dataset: Any, *, seed: int, **kwargs: Any) -> Any:
    """A :class:`ResumableLoader`, or Detectron2's own of a stream, which has no order to go on in.

    Arguments as of ``build_detection_train_loader``; ``seed`` is that of the run, >= 0.
    """
    if not isinstance(dataset, IterableDataset):
        return ResumableLoader(dataset, seed=seed, **kwargs)
    logging.getLogger(__name__).warning(
        "The training data are an IterableDataset: after --resume they start from the beginning"
    )
    return build_detection_train_loader(dataset, **kwargs)


def _wide_images(dataset: Any) -> torch.Tensor:
    """``(N,)`` bool; an image whose dict does not tell its size counts as not wide."""
    if not isinstance(dataset, (list, DatasetFromList)):
        logging.getLogger(__name__).info(
            "Reading the %d items of the training data for the sizes of their images; "
            "aspect_ratio_grouping=False does without",
            len(dataset),
        )
    records = (dataset[i] for i in range(len(dataset)))  # not all of them can be iterated
    return torch.tensor([r.get("width", 0) > r.get("height", 0) for r in records], dtype=torch.bool)


class _Images(Dataset):
    """Mapped images by their :data:`_Place`."""

    def __init__(self, dataset: Any, mapper: Callable[[Any], Any] | None, seed: int) -> None:
        # Serialised in a list of Detectron2's, workers share the memory of it.
        is_list = isinstance(dataset, list)
        self._records = DatasetFromList(dataset, copy=False) if is_list else dataset
        self._mapper = mapper and PicklableWrapper(NamingMapper(mapper))
        self._seed = seed

    def __getitem__(self, place: _Place) -> Any:
        index, position = place
        with seeded(self._seed, IMAGE, position):
            for _ in range(_TRIES):
                record = self._records[index]
                mapped = record if self._mapper is None else self._mapper(record)
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self._records))
        raise RuntimeError(f"the mapper of the training data gave None {_TRIES} times in a row")
