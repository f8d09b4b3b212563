"""Register all of a run's own data sets together."""

from collections.abc import Sequence
from pathlib import Path

from rambo_det.data.catalog import register_sources
from rambo_det.data.coco import read_coco
from rambo_det.data.voc import read_voc

PathLike = str | Path


def register_datasets(
    coco: Sequence[tuple[str, PathLike, PathLike]] = (),
    voc: Sequence[tuple[str, PathLike, str]] = (),
    classes: Sequence[str] | None = None,
    train: Sequence[str] | None = None,
    json_dir: Path | None = None,
) -> list[str]:
    """Check and register a run's data sets so that all share one list of classes.

    Args:
        coco: (name, json file, image folder) of every set in COCO format.
        voc: (name, root folder, split) of every set in VOC layout.
        classes: the class names in the order of the model's outputs. By default those that have a
            box in the training sets: COCO's in the order of their ids, VOC's sorted.
        train: names of the training sets. A class that only another set has is an error; a class
            that only the training sets have is not. Without it all sets count as training sets.
        json_dir: where the COCO json files for evaluation are written, by default the cache.

    Returns:
        The class names; set the config's number of classes to their count.

    Raises:
        InputError: the first thing found wrong, in one line. Nothing is registered then.
    """
    sources = [read_coco(*arguments) for arguments in coco]
    sources += [read_voc(*arguments) for arguments in voc]
    return register_sources(sources, classes, train, json_dir)
