"""A dataset mapper whose errors name the image that caused them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import one_line
from .files import check_image


class ErrorReportingMapper:
    """A wrapper of a Detectron2 dataset mapper, whose errors name image and annotation."""

    def __init__(self, mapper: Callable[[Any], Any]) -> None:
        self._mapper = mapper

    def __call__(self, record: Mapping[str, Any]) -> Any:
        """Calls the mapper. Raises InputError if the image is missing, truncated or of another size
        than in the record, and RuntimeError for any other failure of the mapper."""
        try:
            return self._mapper(record)
        except Exception as error:
            if {"file_name", "width", "height"} <= record.keys():
                file, size = Path(record["file_name"]), (record["width"], record["height"])
                check_image(file, "during training or evaluation", size, decode=True)
            place = f"{record.get('file_name', 'an image')}{self._bad_annotation(record)}"
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise RuntimeError(f"the mapper failed on {place}: {reason}") from error

    def _bad_annotation(self, record: Mapping[str, Any]) -> str:
        """Describes the first annotation that alone makes the mapper fail; "" if none does."""
        for index, annotation in enumerate([None, *(record.get("annotations") or ())], -1):
            try:
                self._mapper({**record, "annotations": [annotation] if index >= 0 else []})
            except Exception:
                of_image = f", annotation {index} of the image, {str(annotation)[:200]}"
                return of_image if index >= 0 else ""
        return ""
