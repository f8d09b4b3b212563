"""Data set mappers that say which image cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .files import check_image


class NamingMapper:
    """A mapper like the given one that names an image that went missing or broke since the start.

    Args:
        mapper: from a record of Detectron2's data sets to what a model takes.
    """

    def __init__(self, mapper: Callable[[Any], Any]) -> None:
        self._mapper = mapper

    def __call__(self, record: Mapping[str, Any]) -> Any:
        """As the mapper.

        Raises:
            InputError: the image is not there, truncated, or of another size than the record says.
        """
        try:
            return self._mapper(record)
        except Exception:
            if {"file_name", "width", "height"} <= record.keys():
                size = (record["width"], record["height"])
                check_image(Path(record["file_name"]), size, "while the run goes on")
            raise  # the image is as it should be
