"""What there is to detect in: image files, folders of them, video files, cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.files import image_size
from ..engine.files import distinct
from ..errors import InputError

#: The pictures at a glance, in the folder of the output.
OVERVIEW = "overview.jpg"

_IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}


@dataclass
class Source:
    """One image, or one video.

    Attributes:
        place: the file, or the camera's number or address.
        output: what the annotated copy is called, relative to the folder of the output.
        is_video: whether it has frames.
    """

    place: str
    output: Path
    is_video: bool


def find_sources(
    inputs: Sequence[str], cameras: Sequence[str], output: Path
) -> tuple[list[Source], list[str]]:
    """The sources that were named, each with a name of its own for its output.

    Of a folder, files that cannot be read are left out.

    Args:
        inputs: files and folders; of these, all images and videos at any depth.
        cameras: numbers, or addresses of streams.
        output: folder of the output, which is not looked into.

    Returns:
        The sources, and for each file that was left out the reason, in one line.

    Raises:
        InputError: something that was named does not exist or cannot be read; there is nothing.
    """
    found: list[tuple[Path, Path, bool]] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if _is_wanted(p, path, output)]
            if not inside:
                raise InputError(f"{name}: no images or videos in this folder")
            found += [(p, p.relative_to(path), False) for p in inside]
        elif path.is_file():
            found.append((path, Path(path.name), True))
        else:
            raise InputError(f"{name}: no such file or folder")
    sources: list[Source] = []
    broken: list[InputError] = []
    for path, relative, named in found:
        video = path.suffix.lower() in _VIDEOS
        try:
            if video:
                _check_video(str(path))
            else:
                image_size(path, "to detect in")
        except InputError as error:
            if named:
                raise
            broken.append(error)
            continue
        sources.append(Source(str(path), relative.with_suffix(_ending(path, video)), video))
    for camera in cameras:
        sources.append(Source(camera, Path(f"camera{camera}.mp4"), True))
        if not camera.isdigit():
            sources[-1].output = Path("camera.mp4")
    if broken and not sources:
        raise broken[0]
    if not sources:
        raise InputError("nothing to detect in: name images, folders or videos, or --camera 0")
    _make_distinct(sources)
    return sources, [str(error) for error in broken]


def _is_wanted(path: Path, folder: Path, output: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    if hidden or path.suffix.lower() not in _IMAGES | _VIDEOS or not path.is_file():
        return False
    # An output inside the folder that is looked through: earlier results are no input.
    return output.resolve() == folder.resolve() or output.resolve() not in path.resolve().parents


def _ending(path: Path, video: bool) -> str:
    if video:
        return ".mp4"
    return path.suffix if path.suffix.lower() in _IMAGES else ".png"


def _make_distinct(sources: Sequence[Source]) -> None:
    taken = {Path(OVERVIEW)}
    for source in sources:
        source.output = distinct(source.output, taken)


def _check_video(file: str) -> None:
    video = open_video(file)
    there, _ = video.read()
    video.release()
    if not there:
        raise InputError(f"{file}: OpenCV cannot read a frame of this video")


def open_video(place: str) -> cv2.VideoCapture:
    """OpenCV's reader of a video file, or of a camera if ``place`` is a number or an address.

    Raises:
        InputError: OpenCV cannot read it.
    """
    video = cv2.VideoCapture(int(place) if place.isdigit() else place)
    if not video.isOpened():
        what = f"--camera {place}" if place.isdigit() or "://" in place else place
        raise InputError(f"{what}: OpenCV cannot read a video there")
    return video


def frames(video: cv2.VideoCapture, most: int | None = None) -> Iterator[np.ndarray]:
    """The frames, ``(H, W, 3)`` uint8 BGR, up to the end or to ``most``."""
    count = 0
    while most is None or count < most:
        there, frame = video.read()
        if not there:
            return
        count += 1
        yield frame
