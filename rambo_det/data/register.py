"""Checks all datasets of a run together and puts them into Detectron2's catalogs."""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..paths import cache_dir
from .coco import read_coco
from .files import make_folder, printable
from .findings import TABLE
from .source import PART_SUFFIXES, DataSource, choose_held_out
from .voc import read_voc
from .yolo import read_yolo

logger = logging.getLogger(__name__)

PathLike = str | Path
#: Format -> function that reads a dataset of this format, called with its name, place and part.
READERS: dict[str, Callable[..., DataSource]] = {
    "coco": read_coco,
    "voc": read_voc,
    "yolo": read_yolo,
}
#: The endings of the names of the two parts that --hold-out makes of a dataset.
_HOLD_OUT_SUFFIXES = ("_fit", "_heldout")
#: Metadata keys that locate the annotations of a dataset. Its parts do not inherit these keys.
_NOT_INHERITED = ("name", "json_file", "image_root", "dirname", "split", "year")


class _CheckedDataset(NamedTuple):
    """A dataset that can be registered."""

    name: str
    content: dict[str, Any]  # of the COCO json
    image_dir: PathLike
    metadata: dict[str, Any]


def register_datasets(
    coco: Sequence[tuple[str, PathLike, PathLike]] = (),
    voc: Sequence[tuple[str, PathLike, str]] = (),
    classes: Sequence[str] | None = None,
    train: Sequence[str] | None = None,
    yolo: Sequence[tuple[str, PathLike, str]] = (),
    split: float | None = None,
) -> list[str]:
    """Checks and registers a run's datasets with one common list of classes.

    Args:
        coco: (name, json file, image folder) of each dataset in COCO format, or (name, folder,
            split) to search the json in the folder, see :func:`.coco.find_coco`.
        voc: (name, root folder, split) of each dataset in VOC layout, or of a folder of images with
            xml files beside them, see :func:`.voc.read_voc`.
        classes: the class names in the order of the model's outputs. By default the classes with a
            box in the training datasets: VOC's sorted by name, others in the order of their ids.
        train: names of the training datasets; None: all. It is an error if another dataset has a
            class that no training dataset has. A class that only training datasets have is allowed.
        yolo: (name, data.yaml, split) of each dataset in YOLO format, see :func:`.yolo.read_yolo`.
        split: the share of each dataset's images to set aside for validation. Each dataset becomes
            `<name>_train` and `<name>_val`, which `train` names. Both parts define the classes.

    Returns:
        The class names; set the config's number of classes to their count.

    Raises:
        InputError: the first error found, in one line. No dataset is registered in this case.
    """
    if split is not None and not 0 < split < 1:
        raise InputError(f"--split must be a share between 0 and 1, such as 0.2, not {split}")
    by_kind = {"coco": coco, "voc": voc, "yolo": yolo}
    given = [(kind, item) for kind, items in by_kind.items() for item in items]
    endings = [""] if split is None else PART_SUFFIXES
    all_names = [item[0] + ending for _, item in given for ending in endings]
    _check_names(all_names)
    for name in train or ():
        if name not in all_names:
            raise InputError(f"train: '{name}' is not one of the datasets: {', '.join(all_names)}")
    sources = [READERS[kind](*item) for kind, item in given]
    for source in sources:
        source.check()
    train_names = list(train or all_names)
    trained = [s for s in sources if split is not None or s.name in train_names]
    names = _class_names(sources, classes, trained)
    for source in sources:
        source.drop_other_classes(names)
        for kind in TABLE:
            if warning := source.findings.describe(kind, source.num_boxes):
                logger.warning("%s: %s", source.file, warning)
    _warn_of_shared_images(trained, sources)
    checked: list[_CheckedDataset] = []
    for source in sources:
        metadata = {**class_metadata(names), **source.metadata}
        metadata["flagged_images"] = list(source.findings.images)
        whole = _CheckedDataset(source.name, source.as_json(names), source.image_dir, metadata)
        if split is None:
            checked.append(whole)
        else:
            number = max(1, round(split * len(source.images)))
            checked += _split(whole, number, PART_SUFFIXES, f"--split {split}")
    boxes = [a for each in checked if each.name in train_names for a in each.content["annotations"]]
    used = {box["category_id"] for box in boxes if not box["iscrowd"]}
    for number, name in enumerate(names, 1):
        if number not in used:
            logger.warning("class '%s' has no box in %s", name, ", ".join(train_names))
    _register(checked)
    return names


def _check_names(names: Sequence[str]) -> None:
    """Raises InputError for a name that is not allowed for a dataset, or already taken."""
    from detectron2.data import DatasetCatalog

    taken = set(DatasetCatalog.list())
    for name in names:
        if not re.fullmatch(r"[\w.\- ]{1,100}", name):
            short = printable(name)[:100]
            raise InputError(f"a dataset cannot be named '{short}': use letters, digits, - . _")
        if names.count(name) > 1:
            raise InputError(f"two datasets would be named '{name}': choose another name for one")
        if name in taken:
            raise InputError(
                f"a dataset named '{name}' is already registered: choose another name, or call "
                f"DatasetCatalog.remove('{name}') first"
            )


def _split(
    whole: _CheckedDataset, number: int, endings: Sequence[str], option: str
) -> list[_CheckedDataset]:
    """Splits a dataset into the images to train on and ``number`` images that are set aside.

    :func:`.source.choose_held_out` chooses the images; ``endings`` follow the dataset's name.
    Raises InputError, naming ``option``, if a part would have no box other than crowds.
    """
    aside = choose_held_out(whole.content["images"], number)
    metadata = {key: value for key, value in whole.metadata.items() if key not in _NOT_INHERITED}
    metadata["part_of"] = whole.name
    parts = []
    for ending, inside in zip(endings, (False, True), strict=True):
        name, content = whole.name + ending, dict(whole.content)
        for key, image_id in (("images", "id"), ("annotations", "image_id")):
            content[key] = [item for item in content[key] if (item[image_id] in aside) == inside]
        if all(box.get("iscrowd") for box in content["annotations"]):
            raise InputError(f"{option} leaves no box in {name}")
        parts.append(_CheckedDataset(name, content, whole.image_dir, metadata))
    return parts


def _register(checked: Sequence[_CheckedDataset]) -> None:
    """Writes the annotations of all datasets into the cache, and only then registers them."""
    folder, files = cache_dir() / "annotations", []
    make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        for each in checked:
            text = json.dumps(each.content)
            # The file name has a hash of the content, so no file is ever stale.
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            file_name = f"{re.sub(r'[^-.0-9A-Za-z]', '_', each.name)}-{digest}.json"
            part = Path(scratch, file_name)
            part.write_text(text)
            # Renames in one step: several processes may write the same file.
            files.append(part.replace(folder / file_name))
    for file, each in zip(files, checked, strict=True):
        add_to_catalogs(each.name, file, each.image_dir, each.metadata)


def _warn_of_shared_images(trained: Sequence[DataSource], sources: Sequence[DataSource]) -> None:
    """Warns of each dataset that has images in common with another one, or with training data."""
    known: dict[str, str] = {}  # image file -> name of its dataset
    for source in [*trained, *(source for source in sources if source not in trained)]:
        files = source.files()
        if both := [file for file in files if file in known]:
            logger.warning(
                "%s: %d of %d images also occur in other data, for example %s in %s: if one is "
                "trained on, the AP on the other is too optimistic",
                source.name, len(both), len(files), printable(both[0]), known[both[0]],
            )  # fmt: skip
        if source in trained:
            known |= dict.fromkeys(files, source.name)


def group_by_format(register: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Returns the arguments ``coco``, ``voc`` and ``yolo`` of :func:`register_datasets`.

    ``register`` has (format, name, place, part) of each dataset, as on the command line.
    """
    register = list(register)
    return {kind: [item for of, *item in register if of == kind] for kind in READERS}


def _class_names(
    sources: Sequence[DataSource], classes: Sequence[str] | None, trained: Sequence[DataSource]
) -> list[str]:
    used = dict.fromkeys(name for source in trained for name in source.used_classes())
    names = list(used if classes is None else classes)
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"class names must be unique and not empty, but are {names}")
    origin, remedy = "training data's", "list all classes with --classes"
    if classes is not None:
        origin, remedy = "expected", "use other data or classes"
    for source in sources:
        for unknown in [name for name in source.used_classes() if name not in names]:
            raise InputError(
                f"{source.file}: class '{unknown}' is not one of the {origin} classes "
                f"({', '.join(names)}): correct the name, or {remedy}"
            )
    return names


def registered_classes(name: str) -> list[str]:
    """Returns the class names of a registered dataset; [] if its metadata lack them."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    metadata = MetadataCatalog.get(name)
    # Those of register_coco_instances are known only after loading. Other datasets are not loaded:
    # one without class names would be loaded at each call.
    if metadata.get("json_file") and not metadata.get("thing_classes"):
        DatasetCatalog.get(name)
    return list(metadata.get("thing_classes") or ())


def class_metadata(names: Sequence[str]) -> dict[str, Any]:
    """Returns MetadataCatalog entries for classes with category ids 1..K and COCO's metrics."""
    return {
        "evaluator_type": "coco",
        "thing_classes": list(names),
        "thing_dataset_id_to_contiguous_id": {k + 1: k for k in range(len(names))},
    }


def add_to_catalogs(
    name: str,
    json_file: PathLike,
    image_root: PathLike,
    metadata: dict[str, Any],
    prepare: Callable[[], Any] = lambda: None,
) -> None:
    """Registers one dataset with Detectron2, under a name that is not taken yet.

    The records keep the key ``difficult``, which objects from VOC have in the COCO json.
    ``prepare`` is called before each reading of the files.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    def load() -> Any:
        from detectron2.data.datasets import load_coco_json

        prepare()
        return load_coco_json(str(json_file), str(image_root), name, ["difficult"])

    DatasetCatalog.register(name, load)
    # Metadata of a dataset that was removed from DatasetCatalog would refuse new values.
    MetadataCatalog.pop(name, None)
    entry = MetadataCatalog.get(name)
    entry.set(json_file=str(json_file), image_root=str(image_root), **metadata)


def hold_out(names: Sequence[str], number: int) -> list[list[str]]:
    """Splits registered datasets: sets aside one image of every `number`, always the same images.

    Registers the parts with Detectron2, and returns the names of the parts to train on,
    `<name>_fit`, and of the parts set aside, `<name>_heldout`. Raises InputError if `number` is
    below 2, a part would have no box, or a dataset has no annotations in COCO format.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if number < 2:
        raise InputError(
            f"--hold-out N sets aside one image of every N, so N must be >= 2, not {number}"
        )
    parts: list[_CheckedDataset] = []
    for name in dict.fromkeys(names):  # a name may be repeated to show its images more often
        # Loading creates files and metadata. A user's own loader may leave out images of its json.
        loaded = {record.get("image_id") for record in DatasetCatalog.get(name)}
        metadata = MetadataCatalog.get(name)
        if not (file := metadata.get("json_file")):
            raise InputError(f"--hold-out: {name} has no annotations in COCO format to split")
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        for key, id_ in (("images", "id"), ("annotations", "image_id")):
            content[key] = [item for item in content[key] if item[id_] in loaded]
        image_root = metadata.get("image_root", "")
        whole = _CheckedDataset(name, content, image_root, metadata.as_dict())
        num_held_out = len(content["images"]) // number
        parts += _split(whole, num_held_out, _HOLD_OUT_SUFFIXES, f"--hold-out {number}")
    for part in parts:
        DatasetCatalog.pop(part.name, None)  # from an earlier split in this process
    _register(parts)
    fit, held_out = ([name + ending for name in names] for ending in _HOLD_OUT_SUFFIXES)
    return [fit, list(dict.fromkeys(held_out))]
