"""Set a part of the training images aside, to choose settings on without the test images."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .register import add_to_catalogs, part_metadata, write_json
from .source import split_json


def hold_out(names: Sequence[str], number: int, json_dir: Path | None = None) -> list[list[str]]:
    """Split registered data sets: one image of every `number` is set aside, the same ones always.

    Which ones depends on the images' file names alone, see :func:`.source.set_aside`.

    Args:
        names: of data sets with annotations in COCO's format.
        number: >= 2.
        json_dir: where the annotations of the parts are written; by default a folder in the cache.

    Returns:
        Names of the parts to train on, then of those set aside: `<name>_fit` and `<name>_heldout`,
        registered with Detectron2.

    Raises:
        InputError: `number` is too small, a part would have no box, or a set has no such
            annotations.
    """
    if number < 2:
        raise InputError(f"--hold-out must be >= 2 (one image of so many), got {number}")
    parts = [_split(name, number, json_dir) for name in names]
    return [list(part) for part in zip(*parts, strict=True)]


def _split(name: str, number: int, json_dir: Path | None) -> tuple[str, str]:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    fit, held = f"{name}_fit", f"{name}_heldout"
    if {fit, held} <= set(DatasetCatalog.list()):
        if MetadataCatalog.get(held).get("hold_out") == number:
            return fit, held
        for part in (fit, held):  # of another split in this process
            DatasetCatalog.remove(part)
    DatasetCatalog.get(name)  # draws or reads what is made at first use, the classes among it
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file")
    if not file:
        raise InputError(f"--hold-out: {name} has no annotations in COCO's format to split")
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    least, option = len(content["images"]) // number, f"--hold-out {number}: of {name},"
    kept = {**part_metadata(metadata.as_dict(), name), "hold_out": number}
    for part, chosen in split_json(content, least, (fit, held), option):
        add_to_catalogs(part, write_json(part, chosen, json_dir), metadata.image_root, kept)
    return fit, held
