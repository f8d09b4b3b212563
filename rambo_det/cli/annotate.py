"""Writes the detections of a detector as annotated pictures and videos, and as COCO results."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tqdm import tqdm

from ..data.files import make_folder
from ..engine.detector import Detector
from ..engine.files import atomic_write, write_picture
from ..errors import InputError
from ..evaluation.pictures import delayed_interrupt, draw_detections, grid
from .sources import OVERVIEW, Source, open_video

_OVERVIEW_SIZE = 12  # maximum number of pictures in the overview
_FRAMES_PER_SECOND = 25.0  # for a camera that reports no frame rate


class Annotator:
    """Writer of annotated copies of sources, and of ``results.json`` with all detections.

    With several images, ``overview.jpg`` shows the first ones. ``images.json``, a COCO json without
    annotations, has the image or video frame of each image id in the results, and the class of each
    category id.

    Raises InputError if the output would overwrite an input or, without ``overwrite``, an existing
    file. ``broken`` has a line for each image or video that could not be read completely.
    """

    def __init__(self, output: Path, sources: Sequence[Source], overwrite: bool) -> None:
        self._output, self._sources = output, sources
        self._results, self._index = output / "results.json", output / "images.json"
        self._num_pictures = sum(not source.is_video for source in sources)
        targets = [self._results, self._index, *(output / s.output for s in sources)]
        if self._num_pictures > 1:
            targets.append(output / OVERVIEW)
        inputs = {Path(source.path_or_address).resolve() for source in sources}
        for target in targets:
            if target.resolve() in inputs:
                raise InputError(f"{target} is one of the inputs: use another --output FOLDER")
            if target.is_dir():
                raise InputError(f"{target} is a folder: use another --output FOLDER")
        existing = [target for target in targets if target.exists()]
        if existing and not overwrite:
            more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
            hint = "use --overwrite, or another --output FOLDER"
            raise InputError(f"{existing[0]} already exists{more}: {hint}")
        self.broken: list[str] = []
        self._images: list[dict[str, Any]] = []
        self._num_drawn = self._num_detections = self._num_written = 0

    def annotate(
        self, detector: Detector, threshold: float | Sequence[float], max_frames: int | None = None
    ) -> None:
        """Annotates all sources; after Ctrl-C, the output is complete for the images done so far.

        ``threshold`` is the lowest score that is drawn, one for all classes or one for each class.
        ``max_frames`` is the number of frames to read from each video; None reads all.
        """
        for source in self._sources:
            make_folder((self._output / source.output).parent, "--output")
        self._detector, self._threshold = detector, torch.as_tensor(threshold)
        lengths = [s.length and min(s.length, max_frames or s.length) for s in self._sources]
        total = None if None in lengths else sum(lengths)
        overview: list[np.ndarray] = []
        with delayed_interrupt() as self._interrupts:
            with (
                atomic_write(str(self._results), "w") as self._file,
                tqdm(total=total, unit="image", disable=None) as self._bar,
            ):
                for source in takewhile(lambda _: not self._interrupts, self._sources):
                    picture = self._annotate_source(source, max_frames)
                    if picture is not None and len(overview) < _OVERVIEW_SIZE:
                        overview.append(picture)
                self._file.write("\n]\n" if self._num_detections else "[]\n")
            names = enumerate(detector.metadata.get("thing_classes") or ())
            categories = [{"id": detector.category_id(k), "name": name} for k, name in names]
            content = {"images": self._images, "annotations": [], "categories": categories}
            with atomic_write(str(self._index), "w") as file:
                json.dump(content, file, indent=1)
            if len(overview) > 1:
                write_picture(self._output / OVERVIEW, grid(overview, 4), 80)

    def _annotate_source(self, source: Source, max_frames: int | None) -> np.ndarray | None:
        """Writes the annotated copy of a source; returns the picture if the source is an image."""
        target, image_info = self._output / source.output, {"file_name": source.path_or_address}
        if not source.is_video:
            try:
                image = read_image(source.path_or_address, format="BGR")
            except Exception as error:  # each decoder has errors of its own
                self.broken.append(f"{source.path_or_address} cannot be read: {error}")
                return None
            try:
                picture = self._detect_and_draw(image, image_info)
            except InputError:
                raise
            except ValueError as error:  # Detectron2 cannot resize long, thin images
                self.broken.append(f"{source.path_or_address} cannot be processed: {error}")
                return None
            write_picture(target, picture)
            self._num_written += 1
            return picture
        first = len(self._images)
        video = open_video(source.path_or_address)
        rate = video.get(cv2.CAP_PROP_FPS)

        def pictures() -> Iterator[np.ndarray]:
            frames = islice(iter(video.read, (False, None)), max_frames)
            for number, (_, frame) in enumerate(frames):
                yield self._detect_and_draw(frame, {**image_info, "frame": number})
                if self._interrupts:
                    return

        write_video(target, pictures(), rate if 0 < rate <= 240 else _FRAMES_PER_SECOND)
        number, length = len(self._images) - first, source.length or 0
        # Some files state a few frames more than they have.
        if number < 0.9 * min(length, max_frames or length) and not self._interrupts:
            text = f"only {number} of {length} frames can be read"
            self.broken.append(f"{source.path_or_address}: {text}")
        return None

    def _detect_and_draw(self, image: np.ndarray, image_info: dict[str, Any]) -> np.ndarray:
        detections = self._detector(image)
        image_id = len(self._images) + 1
        size = {"height": image.shape[0], "width": image.shape[1]}
        self._images.append({"id": image_id, **image_info, **size})
        for item in instances_to_coco_json(detections, image_id):
            item["category_id"] = self._detector.category_id(item["category_id"])
            self._file.write((",\n" if self._num_detections else "[\n") + json.dumps(item))
            self._num_detections += 1
        is_single = not self._threshold.dim()
        min_score = self._threshold if is_single else self._threshold[detections.pred_classes]
        drawn = detections[detections.scores >= min_score]
        self._num_drawn += len(drawn)
        self._bar.update()
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        return draw_detections(rgb, drawn, self._detector.metadata)[:, :, ::-1]

    def summary(self, why: str) -> str:
        """Returns a text about the output; ``why`` is the origin of the threshold."""
        low, high = float(self._threshold.min()), float(self._threshold.max())
        threshold = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        videos = len(self._sources) - self._num_pictures
        numbers = ((self._num_written, "picture"), (videos, "video"))
        counts = [f"{n} {what}{'s' * (n > 1)}" for n, what in numbers if n]
        return (
            f"{' and '.join(counts) or 'no pictures'} in {self._output}\n"
            f"drawn: {self._num_drawn} detections with a score of at least {threshold} ({why}); "
            f"not drawn: {self._num_detections - self._num_drawn} with lower scores "
            "(--threshold 0 draws all)\n"
            f"all {self._num_detections} detections: {self._results} (image ids: see "
            f"{self._index.name})"
        )


def write_video(target: Path, pictures: Iterable[np.ndarray], rate: float) -> None:
    """Writes pictures, ``(H, W, 3)`` uint8 BGR, as an mp4, which gets its name once it is complete.

    Raises InputError if there are no pictures or OpenCV cannot write videos.
    """
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    writer = cv2.VideoWriter()
    try:
        for picture in pictures:
            if not writer.isOpened():
                code, size = cv2.VideoWriter.fourcc(*"mp4v"), picture.shape[1::-1]
                if not writer.open(str(part), code, rate, size):
                    raise InputError(f"{target}: this OpenCV cannot write mp4 videos")
            writer.write(np.ascontiguousarray(picture))
        if not writer.isOpened():
            raise InputError(f"{target}: the video has no frames to annotate")
        writer.release()
        os.replace(part, target)
    finally:
        writer.release()
        part.unlink(missing_ok=True)
