"""Writes what a detector finds: pictures, videos and COCO results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tqdm import tqdm

from ..engine.detector import Detector
from ..engine.files import whole_file
from ..errors import InputError
from ..evaluation.pictures import draw_detections, grid
from .sources import OVERVIEW, Source, frames, open_video

_AT_A_GLANCE = 12  # pictures at most
_FRAMES_PER_SECOND = 25.0  # of a camera that does not tell


class Annotator:
    """Annotated copies of sources in a folder, and all detections in ``results.json``.

    Of several images the first ones are in ``overview.jpg`` too.

    ``images.json`` tells which image, or frame of a video, an image id of the results means, and
    which class a category id; it is an annotation file of COCO's without annotations. As a context
    manager: ``results.json`` appears at the end, after an interruption with what there was.

    Args:
        output: the folder; made if it is not there.
        sources: what will be annotated.
        overwrite: whether files of the output may be replaced; inputs never are.

    Raises:
        InputError: something would be overwritten, or the folder cannot be made.
    """

    def __init__(self, output: Path, sources: Sequence[Source], overwrite: bool) -> None:
        self._output, self._sources = output, sources
        self._results, self._index = output / "results.json", output / "images.json"
        self._overview = output / OVERVIEW
        targets = [self._results, self._index, *(output / s.output for s in sources)]
        self._num_pictures = sum(not source.is_video for source in sources)
        if self._num_pictures > 1:
            targets.append(self._overview)
        self._shown: list[np.ndarray] = []
        inputs = {Path(source.place).resolve() for source in sources}
        for target in targets:
            if target.resolve() in inputs:
                raise InputError(
                    f"{target} is an input and would be overwritten: --output ANOTHER_FOLDER"
                )
        there = [target for target in targets if target.exists()]
        if there and (not overwrite or any(target.is_dir() for target in there)):
            raise InputError(
                f"{there[0]} exists already"
                + (f", and {len(there) - 1} more" if len(there) > 1 else "")
                + ": --overwrite replaces it, or --output ANOTHER_FOLDER"
            )
        self._stack = ExitStack()
        self._images: list[dict[str, Any]] = []
        self._categories: list[dict[str, Any]] = []
        self._drawn = self._found = 0

    def __enter__(self) -> Annotator:
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            for source in self._sources:
                (self._output / source.output).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {self._output} cannot be made: {error}") from None
        self._file = self._stack.enter_context(whole_file(str(self._results), "w"))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            self._file.write("\n]\n" if self._found else "[]\n")
            self._stack.close()
            content = {"images": self._images, "annotations": [], "categories": self._categories}
            with whole_file(str(self._index), "w") as file:
                json.dump(content, file, indent=1)
            if len(self._shown) > 1:
                _write_picture(self._overview, grid(self._shown, min(4, len(self._shown))), 80)
        else:
            self._stack.__exit__(kind, error, trace)

    def annotate(self, detector: Detector, threshold: float, most: int | None = None) -> None:
        """Annotates all sources.

        Args:
            detector: what detects.
            threshold: the least score that is drawn.
            most: how many frames of each video; None: all.

        Raises:
            InputError: a camera gives no frames.
        """
        names = detector.metadata.get("thing_classes") or ()
        self._categories = [
            {"id": detector.category_id(k), "name": name} for k, name in enumerate(names)
        ]
        with tqdm(total=self._number_of_images(most), unit="image", disable=None) as bar:

            def annotated(image: np.ndarray, about: dict[str, Any]) -> np.ndarray:
                picture = self._annotate(image, about, detector, threshold)
                bar.update()
                return picture

            for source in self._sources:
                target = self._output / source.output
                if source.is_video:
                    self._video(source, target, annotated, most)
                else:
                    image = read_image(source.place, format="BGR")
                    picture = annotated(image, {"file_name": source.place})
                    _write_picture(target, picture)
                    if len(self._shown) < min(_AT_A_GLANCE, self._num_pictures):
                        self._shown.append(picture)

    def _number_of_images(self, most: int | None) -> int | None:
        total = 0
        for source in self._sources:
            number = 1
            if source.is_video:
                video = open_video(source.place)
                number = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
                video.release()
                number = most or 0 if number <= 0 else min(number, most or number)
                if not number:
                    return None  # a camera: until it ends
            total += number
        return total

    def _annotate(
        self, image: np.ndarray, about: dict[str, Any], detector: Detector, threshold: float
    ) -> np.ndarray:
        found = detector(image)
        number = len(self._images) + 1
        size = {"height": image.shape[0], "width": image.shape[1]}
        self._images.append({"id": number, **about, **size})
        for item in instances_to_coco_json(found, number):
            item["category_id"] = detector.category_id(item["category_id"])
            self._file.write((",\n" if self._found else "[\n") + json.dumps(item))
            self._found += 1
        shown = found[found.scores >= threshold]
        self._drawn += len(shown)
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        return draw_detections(rgb, shown, detector.metadata)[:, :, ::-1]

    def _video(
        self, source: Source, target: Path,
        annotated: Callable[[np.ndarray, dict[str, Any]], np.ndarray], most: int | None,
    ) -> None:  # fmt: skip
        video = open_video(source.place)
        rate = video.get(cv2.CAP_PROP_FPS)
        pictures = (
            annotated(frame, {"file_name": source.place, "frame": number})
            for number, frame in enumerate(frames(video, most))
        )
        try:
            write_video(target, pictures, rate if 0 < rate <= 240 else _FRAMES_PER_SECOND)
        finally:
            video.release()

    def summary(self, threshold: float, why: str) -> str:
        """What was done, and what a picture does not show."""
        pictures, videos = self._num_pictures, len(self._sources) - self._num_pictures
        numbers = ((pictures, "picture"), (videos, "video"))
        counts = [f"{n} {what}{'s' * (n > 1)}" for n, what in numbers if n]
        hidden = self._found - self._drawn
        return (
            f"{' and '.join(counts)} in {self._output}\n"
            f"drawn: {self._drawn} detections that score at least {threshold:.3g} ({why}); hidden: "
            f"{hidden} lower ones (--threshold 0 draws all)\n"
            f"all {self._found}: {self._results}, by the image ids of {self._index.name}"
        )


def write_video(target: Path, pictures: Iterable[np.ndarray], rate: float) -> None:
    """Writes pictures, ``(H, W, 3)`` uint8 BGR, as mp4; when interrupted, those until then.

    Raises:
        InputError: there are none, or OpenCV cannot write videos.
    """
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    writer = None
    try:
        for picture in pictures:
            if writer is None:
                height, width = picture.shape[:2]
                code = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(part), code, rate, (width, height))
                if not writer.isOpened():
                    raise InputError(f"{target}: this OpenCV cannot write mp4 videos")
            writer.write(np.ascontiguousarray(picture))
        if writer is None:
            raise InputError(f"{target}: the video has no frames to annotate")
    except BaseException as error:
        if writer is not None:
            writer.release()
        if writer is not None and isinstance(error, KeyboardInterrupt):
            os.replace(part, target)
        else:
            part.unlink(missing_ok=True)
        raise
    writer.release()
    os.replace(part, target)


def _write_picture(path: Path, picture: np.ndarray, jpeg_quality: int = 95) -> None:
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if is_jpeg else []
    with whole_file(str(path), "wb") as file:
        file.write(cv2.imencode(path.suffix, picture, options)[1].tobytes())
