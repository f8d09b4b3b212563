"""What a run's folder says of it: which run it is, how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine.files import PART, AtomicFiles
from ..errors import InputError
from .plan import Run, default_settings

_FILE = "compare.json"
#: Held by who works in the folder; it may be there before the record.
LOCK = ".lock"


def damaged(folder: Path, what: str) -> InputError:
    """The error about a run's folder that is not as the run left it."""
    return InputError(f"{folder}: {what}: remove this folder, and the same command trains it again")


def read_record(folder: Path) -> dict[str, Any]:
    """The record in the folder; empty if there is none.

    Keys: ``settings``, ``command``, ``source`` (digest of the code that trained it), ``status``
    ("started", "finished" or "failed"), ``error`` (the line, where it failed).

    Raises:
        InputError: it is no json.
    """
    try:
        record = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise damaged(folder, f"{_FILE} cannot be read ({error})") from None
    return record if isinstance(record, dict) else {}


def write_record(folder: Path, **changes: Any) -> None:
    """Changes keys of the record; makes folder and file where there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {**read_record(folder), **changes}
    with AtomicFiles(None).open(str(folder / _FILE), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)


def check_same_run(run: Run) -> None:
    """Raises InputError if the folder of the run holds another one."""
    # Looked at before the record, which another comparison may be about to write.
    names = {file.name for file in run.folder.iterdir()} if run.folder.is_dir() else set()
    record = read_record(run.folder)
    if not record:
        if names - {LOCK, _FILE + PART}:
            raise InputError(f"{run.folder} holds something else: name another folder with --out")
        return
    # A key that is new since then had no other value than its default.
    was = {**default_settings(), **record.get("settings", {})}
    for key in sorted(run.settings):
        if was.get(key) != run.settings[key]:
            raise InputError(
                f"{run.folder} was made with {key} {was.get(key)!r}, now it is "
                f"{run.settings.get(key)!r}: name another folder with --out, or remove this one"
            )


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of the run's metrics.json; none if it has not begun."""
    try:
        lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the end of a run that was killed, or is being written
            continue


def last_iteration(folder: Path) -> int:
    """How many iterations of the run are done, as far as its metrics.json tells."""
    try:
        with open(folder / "metrics.json", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["iteration"]) + 1
        except (ValueError, KeyError, TypeError):
            continue
    return 0
