"""Warnings about data that can be read but look wrong: one table for all formats."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .files import printable

#: Kind of finding -> its warning. {n} is the number of findings, {of} the number of all boxes.
TABLE = {
    "dropped": "dropped {n} box(es) without area inside their image",
    "beyond": "{n} of {of} boxes reach beyond their image, and are cut to it in training: are "
    "they boxes of this image, in the form of their format? --check-data FOLDER shows them",
    "fraction": "{n} of {of} boxes have fractions between 0 and 1 for coordinates, which have to "
    "be in px: multiply them by the width and height of the image",
    "twice": "{n} box(es) are there twice, with the same class",
    "area": "{n} 'area'(s) are 0 or far from their box or mask, whose area is taken instead",
    "crowd": "left out {n} crowd box(es) of classes that have no other box in the training data",
    "bad mask": "left out {n} mask(s) that cannot be read",
    "few points": "left out {n} polygon(s) of fewer than three points",
    "outside": "left out {n} mask(s) or polygon(s) outside their image or without area",
    "mask beyond": "{n} mask(s) reach beyond their image: are they in px of it?",
    "mask away": "{n} mask(s) lie elsewhere than their boxes: are both in px of the image?",
    "key points": "left out all key points",
    "point outside": "{n} object(s) have visible key points outside their image",
    "unpaired": "{n} key point(s) have no partner of the other side, and stay as they are in "
    "mirrored images",
    "turned": "{n} image(s) are turned as their EXIF orientation says: are their boxes those of "
    "the turned image? --check-data FOLDER shows them",
    "rotated": "{n} box(es) are marked as rotated, and are taken as if they were not",
    "mixed": "{n} line(s) are polygons where others are boxes: are they boxes with more numbers?",
    "same file": "{n} image(s) name a file that another one names: the objects of one are "
    "background in the other",
    "no label": "{n} image(s) have no label file, and are taken for images without objects",
    "no xml": "left out {n} image(s) without an xml beside them",
    "no image": "left out {n} label file(s) without an image",
    "listed twice": "{n} image(s) are listed twice, and are taken once",
}
_SHOWN = 10


class Findings:
    """The findings in a dataset: the places of each kind, in the order of finding."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = defaultdict(list)
        self.images: dict[Any, None] = {}  # ids of the images with findings

    def add(self, kind: str, place: str, image_id: Any = None) -> None:
        """Records one finding. ``place`` tells the user where to look in the data."""
        self._places[kind].append(printable(place))
        if image_id is not None:
            self.images[image_id] = None

    def places(self, kind: str) -> list[str]:
        """Returns the places where a kind was found."""
        return self._places.get(kind, [])

    def warnings(self, boxes: int) -> Iterator[str]:
        """Yields a warning and the first ten places of each kind; ``boxes`` counts dropped ones."""
        for kind, text in TABLE.items():
            if places := self.places(kind):
                rest = len(places) - _SHOWN
                more = f" and {rest} more" if rest > 0 else ""
                told = text.format(n=len(places), of=boxes)
                yield f"{told}: {', '.join(places[:_SHOWN])}{more}"
