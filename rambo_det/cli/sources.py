"""Finds the inputs of a detector: image files, video files, folders of both, and cameras."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from ..data.files import IMAGE_EXTENSIONS, check_image, files_in
from ..engine.files import unique_path
from ..errors import InputError

#: The file in the output folder that shows the first pictures side by side.
OVERVIEW = "overview.jpg"

_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}


@dataclass
class Source:
    """An image, a video or a camera."""

    path_or_address: str  # a file, or a camera's number or address
    output: Path  # path of the annotated copy, relative to the output folder
    is_video: bool = False
    length: int | None = 1  # number of frames; None: unknown, as for a camera


def find_sources(
    inputs: Sequence[str], cameras: Sequence[str], output: Path
) -> tuple[list[Source], list[str]]:
    """Finds the sources that the user named, and gives each a distinct output path.

    A folder stands for all images and videos in it at any depth, except those in ``output``. Its
    unreadable files are left out; the second list has the reasons, a line each.
    Raises InputError if a named input or camera does not exist or cannot be read, or if there is no
    source.
    """
    sources: list[Source] = []
    broken: list[InputError] = []
    for path in map(Path, inputs):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if not path.is_dir():
            sources.append(_source_from_file(path, Path(path.name)))
            continue
        inside = files_in(path, IMAGE_EXTENSIONS | _VIDEOS)
        if path.resolve() in output.resolve().parents:  # earlier results are not inputs
            inside = [p for p in inside if output.resolve() not in p.resolve().parents]
        if not inside:
            raise InputError(f"{path}: no images or videos in this folder")
        for file in inside:
            try:
                sources.append(_source_from_file(file, file.relative_to(path)))
            except InputError as error:
                broken.append(error)
    for camera in cameras:
        open_video(camera).release()  # a wrong camera is named before other inputs are annotated
        number = camera if camera.isdecimal() else ""
        sources.append(Source(camera, Path(f"camera{number}.mp4"), True, None))
    if not sources:
        no_inputs = "no inputs: name images, folders or videos, or use --camera 0"
        raise broken[0] if broken else InputError(no_inputs)
    taken = {Path(OVERVIEW)}
    for source in sources:
        source.output = unique_path(source.output, taken)
    return sources, [str(error) for error in broken]


def _source_from_file(file: Path, output: Path) -> Source:
    if file.suffix.lower() not in _VIDEOS:
        check_image(file, "INPUT")
        ending = file.suffix if file.suffix.lower() in IMAGE_EXTENSIONS else ".png"
        return Source(str(file), output.with_suffix(ending))
    video = open_video(str(file))
    length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    has_frame, _ = video.read()
    video.release()
    if not has_frame:
        raise InputError(f"{file}: OpenCV cannot read a frame of this video")
    return Source(str(file), output.with_suffix(".mp4"), True, length if length > 0 else None)


def open_video(path_or_address: str) -> cv2.VideoCapture:
    """Opens a video file, or a camera by its number or address; InputError if OpenCV cannot."""
    is_number = path_or_address.isdecimal()
    video = cv2.VideoCapture(int(path_or_address) if is_number else path_or_address)
    if not video.isOpened():
        name = path_or_address
        if not Path(path_or_address).is_file():
            name = f"--camera {shlex.quote(path_or_address)}"
        raise InputError(f"{name}: OpenCV cannot open this video")
    return video
