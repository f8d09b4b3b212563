"""Set a part of the training images aside, to choose settings on without the test images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .register import add_to_catalogs, write_json
from .source import set_aside


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
            MetadataCatalog.remove(part)
    DatasetCatalog.get(name)  # draws or reads what is made at first use, the classes among it
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file")
    if not file:
        raise InputError(f"--hold-out: {name} has no annotations in COCO's format to split")
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    aside = set_aside(content["images"], len(content["images"]) // number)
    # Where the annotations of a VOC folder are is left out: they are those of all images.
    kept = {
        key: value
        for key, value in metadata.as_dict().items()
        if key not in ("name", "json_file", "image_root", "dirname", "split", "year")
    }
    parts = {fit: _part(content, aside, False), held: _part(content, aside, True)}
    for part, chosen in parts.items():
        if all(annotation["iscrowd"] for annotation in chosen["annotations"]):
            raise InputError(f"--hold-out {number}: of {name}, {part} would have no box")
    for part, chosen in parts.items():
        path = write_json(part, chosen, json_dir)
        add_to_catalogs(
            part, path, metadata.image_root, {**kept, "hold_out": number, "part_of": name}
        )
    return fit, held


def _part(content: dict[str, Any], aside: set[Any], inside: bool) -> dict[str, Any]:
    images = [image for image in content["images"] if (image["id"] in aside) == inside]
    boxes = [a for a in content["annotations"] if (a["image_id"] in aside) == inside]
    return {**content, "images": images, "annotations": boxes}
