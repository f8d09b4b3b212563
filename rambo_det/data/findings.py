"""Warnings about data that can be read but look wrong: one table for all formats."""

from collections import defaultdict
from typing import Any

from .files import printable

#: Kind of finding -> its warning. {n} is the number of findings, {of} the number of all boxes.
TABLE = {
    "dropped": "dropped {n} box(es) without area inside their image",
    "beyond": "{n} of {of} boxes extend beyond their image and are clipped in training: check that "
    "image and coordinate format are right; --check-data FOLDER draws them",
    "fraction": "{n} of {of} boxes have coordinates between 0 and 1, but coordinates must be in "
    "px: multiply them by the image width and height",
    "twice": "{n} box(es) occur twice with the same class",
    "area": "{n} 'area' value(s) are 0 or do not fit the box or mask; the area of the mask or box "
    "is used instead",
    "crowd": "ignored {n} crowd box(es) of classes that have no other box in the training data",
    "bad mask": "ignored {n} mask(s) that cannot be read",
    "few points": "ignored {n} polygon(s) with fewer than three points",
    "outside": "ignored {n} mask(s) or polygon(s) outside their image or without area",
    "mask beyond": "{n} mask(s) extend beyond their image: check that they are in px of this image",
    "mask away": "{n} mask(s) hardly overlap their boxes: check that both are in px of the image",
    "keypoints": "ignored all keypoints",
    "point outside": "{n} object(s) have visible keypoints outside their image",
    "unpaired": "{n} keypoint(s) have no left/right partner and are not swapped in flipped images",
    "turned": "{n} image(s) are rotated according to their EXIF orientation: check that the boxes "
    "refer to the rotated image; --check-data FOLDER draws them",
    "rotated": "{n} box(es) are marked as rotated; the rotation is ignored",
    "mixed": "{n} image(s) have polygons while other objects are boxes: check that the polygons "
    "are not boxes with extra numbers",
    "same file": "{n} image entries use a file that another entry also uses: in training, the "
    "objects of one entry are background for the other",
    "no label": "{n} image(s) have no label file and are treated as images without objects",
    "no xml": "ignored {n} image(s) without an xml beside them",
    "no image": "ignored {n} label file(s) without an image",
    "listed twice": "{n} image(s) are listed twice and are used once",
}
_SHOWN = 10


class Findings:
    """The findings in a dataset: the places of each kind, in the order of finding."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = defaultdict(list)  # by kind
        self.images: dict[Any, None] = {}  # ids of the images with findings

    def add(self, kind: str, place: str, image_id: Any = None) -> None:
        """Records one finding. ``place`` tells the user where to look in the data."""
        self.places[kind].append(printable(place))
        if image_id is not None:
            self.images[image_id] = None

    def describe(self, kind: str, boxes: int) -> str:
        """Returns the warning of a kind with its first ten places; "" if the kind was not found.

        ``boxes`` is the number of all boxes, including dropped ones.
        """
        places = self.places[kind]
        text = TABLE[kind].format(n=len(places), of=boxes)
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        return f"{text}: {', '.join(places[:_SHOWN])}{more}" if places else ""
