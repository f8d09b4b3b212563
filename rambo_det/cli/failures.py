"""What a user reads when a run ends early: one line, unless it is a bug."""

from __future__ import annotations

import errno
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InputError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_IN_ANOTHER_PROCESS = f"{InputError.__module__}.{InputError.__name__}: "


def status_of(tool: Callable[[], Any], advice: str = "") -> int:
    """Runs a tool; the exit status, after a line on standard error if it failed.

    What the tool returns, None as 0; 2 for a user's mistake, 1 for what went wrong on the way, 130
    for Ctrl-C. A bug is raised.

    Args:
        tool: what is run.
        advice: how a user goes on with what was cut off; empty: not at all.
    """
    with _quiet_threads():
        try:
            return int(tool() or 0)
        except KeyboardInterrupt:
            print(_and("interrupted", advice), file=sys.stderr)
            return 130
        except Exception as error:
            explained = explain(error, advice)
            if explained is None:
                raise
            status, line = explained
            print(f"error: {line}", file=sys.stderr)
            return status


def explain(error: BaseException, advice: str = "") -> tuple[int, str] | None:
    """The exit status, 2 for a user's mistake, and the line to print; None: a bug.

    Args:
        error: what the tool ended with.
        advice: as for :func:`status_of`.
    """
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "detectron2":
        return 2, (
            "Detectron2 is not installed: pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git'"
        )
    # What was raised in another process comes with its traceback in the message.
    last = (str(error).strip().splitlines() or [""])[-1]
    if isinstance(error, InputError) or last.startswith(_IN_ANOTHER_PROCESS):
        return 2, last.removeprefix(_IN_ANOTHER_PROCESS)
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        if _is_of_a_full_disk(cause):
            return 1, _and(f"{cause}: make room", advice)
        if isinstance(cause, PermissionError) and cause.filename is not None:
            return 1, _and(f"{cause}: change the rights of the file or its folder", advice)
        if _is_of_a_worker(cause):
            line = f"a data worker died, perhaps for want of memory ({text})"
            return 1, f"{_and(line, advice)}; DATALOADER.NUM_WORKERS sets how many there are"
        if _is_of_a_peer(cause):
            reason = text.split(". ")[0]
            line = f"another process of the run has ended, and may have said why ({reason})"
            return 1, _and(line, advice)
        cause = cause.__cause__ or cause.__context__
    return None


def _and(line: str, advice: str) -> str:
    return f"{line}; {advice}" if advice else line


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Inside, a thread that a full disk ends prints nothing: TensorBoard's hands its error on to
    the main thread, and printed a traceback into the one line about it."""
    before = threading.excepthook

    def told(args: threading.ExceptHookArgs) -> None:
        if not _is_of_a_full_disk(args.exc_value):
            before(args)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before


def _is_of_a_full_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def _is_of_a_worker(error: BaseException) -> bool:
    """Whether a data worker died: torch may say so itself, or find its pipe closed."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    files = [step.filename for step in traceback.extract_tb(error.__traceback__)]
    in_loader = any(file.endswith("torch/utils/data/dataloader.py") for file in files)
    return in_loader and isinstance(error, (ConnectionError, EOFError))


def _is_of_a_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process of the run is gone."""
    marks = ("gloo/transport", "ncclRemoteError")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)
