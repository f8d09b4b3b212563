"""A loader whose training batches are the same whether a run was interrupted or not."""

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
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..data.mapper import ErrorReportingMapper
from ..errors import InputError
from .seeds import IMAGE, ORDER, run_seed, seeded

#: Index of an image in the dataset, and its position in the stream of images of all processes.
_StreamItem = tuple[int, int]
_TRIES = 100


class ResumableLoader:
    """Endless batches of images; batch i is the same in every run with the same seed.

    It works like Detectron2's loader, with two differences. It groups images into batches before it
    reads them, so that a run can start at any batch. The augmentation of an image depends on the
    seed and on the image's position in the stream, not on the worker that reads the image.

    Args:
        dataset: a list of dicts, or a map-style dataset of dicts.
        mapper: converts a dict to a model input; if it returns None, another image is read.
        sampler: yields this process's share of an endless stream of indices; None: shuffled.
        total_batch_size: number of images in the batches of all processes together.
        aspect_ratio_grouping: a batch has only wide images, or only others. To know the sizes of
            the images, the loader reads a dataset that is not a list once as a whole.
        collate_fn: as in Detectron2's ``build_detection_train_loader``.
        seed: the seed; below 0: a random one.
        drop_last: no effect, as the stream is endless; Detectron2's loader has this argument.
        **kwargs: passed to DataLoader, e.g. ``num_workers``.

    Attributes:
        seed: the seed, >= 0.
        start: the number of the first batch; read when the first batch is requested.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        mapper: Callable[[Any], Any] | None = None,
        sampler: Sampler | None = None,
        total_batch_size: int,
        aspect_ratio_grouping: bool = True,
        collate_fn: Callable[[list], Any] | None = None,
        seed: int = -1,
        drop_last: bool = True,
        **kwargs: Any,
    ) -> None:
        self.seed = run_seed(seed)
        self.start = 0
        world_size = comm.get_world_size()
        self._batch_size, rest = divmod(total_batch_size, world_size)
        if rest or total_batch_size < 1:
            size = f"{total_batch_size} images per batch (SOLVER.IMS_PER_BATCH, total_batch_size)"
            raise InputError(f"{size} cannot be divided among {world_size} processes")
        with seeded(self.seed, ORDER):  # the default sampler draws a seed itself
            self._sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
        self._wide = _wide_images(dataset) if aspect_ratio_grouping else None
        self._images = _MappedImages(dataset, mapper, self.seed)
        if not kwargs.get("num_workers"):  # DataLoader refuses the argument then
            kwargs.pop("prefetch_factor", None)
        self._arguments = {**kwargs, "collate_fn": collate_fn or trivial_batch_collator}

    def __iter__(self) -> Iterator[Any]:
        # This generator reads `start` and starts its workers when the first batch is requested.
        # Some trainers create the iterator before they know where the run starts.
        yield from DataLoader(
            self._images,
            batch_sampler=islice(self.batches(), self.start, None),
            # By default, DataLoader draws a seed from the generator that the model uses.
            generator=torch.Generator().manual_seed(self.seed),
            **self._arguments,
        )

    def batches(self) -> Iterator[list[_StreamItem]]:
        """Yields the images of each batch of this process, from the first batch on."""
        wide, rank, world_size = self._wide, comm.get_rank(), comm.get_world_size()
        images = (  # without aspect_ratio_grouping, all images are in one group
            {"width": 0 if wide is None else int(wide[index]), "height": 0,
             "item": (index, rank + i * world_size)}
            for i, index in enumerate(self._sampler)
        )  # fmt: skip
        for batch in AspectRatioGroupedDataset(images, self._batch_size):
            yield [image["item"] for image in batch]


def train_loader(dataset: Any, *, seed: int, **kwargs: Any) -> Any:
    """Returns a :class:`ResumableLoader`, or Detectron2's loader for an IterableDataset.

    A run cannot resume in the middle of an IterableDataset. ``seed`` is the run's seed, >= 0. The
    other arguments are those of ``build_detection_train_loader``.
    """
    if not isinstance(dataset, IterableDataset):
        return ResumableLoader(dataset, seed=seed, **kwargs)
    return build_detection_train_loader(dataset, **kwargs)


def _wide_images(dataset: Any) -> torch.Tensor:
    """Returns which images are wide, ``(N,)`` bool; an image of unknown size counts as not wide."""
    if not isinstance(dataset, (list, DatasetFromList)):
        text = "Reading %d items to group images by shape; aspect_ratio_grouping=False skips this"
        logging.getLogger(__name__).info(text, len(dataset))
    records = (dataset[i] for i in range(len(dataset)))  # some datasets are not iterable
    return torch.tensor([r.get("width", 0) > r.get("height", 0) for r in records], dtype=torch.bool)


class _MappedImages(Dataset):
    """Dataset of mapped images, indexed by a :data:`_StreamItem`."""

    def __init__(self, dataset: Any, mapper: Callable[[Any], Any] | None, seed: int) -> None:
        # Detectron2's DatasetFromList serialises the records, so that workers share their memory.
        self._records = (
            DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
        )
        self._mapper = mapper and PicklableWrapper(ErrorReportingMapper(mapper))
        self._seed = seed

    def __getitem__(self, item: _StreamItem) -> Any:
        index, position = item
        with seeded(self._seed, IMAGE, position):
            for _ in range(_TRIES):
                record = self._records[index]
                mapped = record if self._mapper is None else self._mapper(record)
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self._records))
        raise RuntimeError(f"the training mapper returned None for {_TRIES} images in a row")
