"""Functions that write files so that a killed process leaves no incomplete ones."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

#: Suffix of the name of a file that is still being written.
PART_SUFFIX = ".part"


class AtomicPathManager:
    """iopath's path manager, but a local file gets its name only once it is complete."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        """Opens a file as iopath does; a file for writing must be used as a context manager."""
        if "w" in mode and "://" not in path:
            return atomic_write(path, mode, **kwargs)
        return self._manager.open(path, mode, **kwargs)


@contextmanager
def atomic_write(path: str, mode: str, **kwargs: Any) -> Iterator[IO[Any]]:
    """Yields a file to write; renames it to ``path`` at the end, or deletes it after an error."""
    part = path + PART_SUFFIX
    try:
        with open(part, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave ``path`` without its content
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(part)
        raise


def write_picture(path: Path, picture: np.ndarray, jpeg_quality: int = 95) -> None:
    """Writes a picture, ``(H, W, 3)`` uint8 BGR, in the format of the path's suffix."""
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if is_jpeg else []
    with atomic_write(str(path), "wb") as file:
        file.write(cv2.imencode(path.suffix, picture, options)[1].tobytes())


def unique_path(path: Path, taken: set[Path]) -> Path:
    """Returns ``path``, numbered if it is in ``taken``; adds the returned path to ``taken``."""
    candidate, number = path, 1
    while candidate in taken:
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    taken.add(candidate)
    return candidate


def drop_unfinished_line(file: str) -> None:
    """Removes a last line without a line break, which would spoil the next appended line."""
    with suppress(FileNotFoundError), open(file, "rb+") as f:
        f.truncate(f.read().rfind(b"\n") + 1)
