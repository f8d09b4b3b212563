"""Turns the errors that end a command into one line for the user, unless they are bugs."""

import errno
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

from ..errors import INSTALL_DETECTRON2, InputError, one_line

# errno of a file that cannot be written -> what the user can do about it.
_ADVICE = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EFBIG: "allow larger files (ulimit -f), or write to another file system",
    errno.EROFS: "write to a folder that is not read-only",
}
_IN_ANOTHER_PROCESS = f"{InputError.__module__}.{InputError.__name__}: "


def exit_status(tool: Callable[[], Any], advice: str = "") -> int:
    """Runs a tool and returns the exit status; prints a line on standard error if the tool failed.

    The status is what the tool returns (None is 0), 2 for a user's mistake, 1 for a failure of the
    machine or another process, 130 for Ctrl-C. Bugs are raised. ``advice``: how a user can go on.
    """
    more = f"; {advice}" if advice else ""
    with mock.patch("threading.excepthook", _quiet_thread):
        try:
            return int(tool() or 0)
        except KeyboardInterrupt:
            print(f"interrupted{more}", file=sys.stderr)
            return 130
        except Exception as error:
            mistake = _mistake(error)
            line = mistake or _runtime_failure(error)
            if not line:
                raise
            print(f"error: {mistake or line + more}", file=sys.stderr)
            return 2 if mistake else 1


def _mistake(error: Exception) -> str | None:
    """Returns the line about a user's mistake; None if the error is not a user's mistake."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "detectron2":
        return f"Detectron2 is not installed: {INSTALL_DETECTRON2}"
    # An error from another process has its traceback in the message.
    last = (str(error).strip().splitlines() or [""])[-1]
    if isinstance(error, InputError) or last.startswith(_IN_ANOTHER_PROCESS):
        return last.removeprefix(_IN_ANOTHER_PROCESS)
    return None


def _runtime_failure(error: BaseException | None) -> str | None:
    """Returns the line about a failure of the machine or another process; None for a bug."""
    if error is None:
        return None
    text = one_line(error)
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return f"{error}: {_ADVICE[error.errno]}"
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"{error}: change the permissions of the file or its folder"
    if _is_dead_worker(error):
        return (
            f"a data loader worker died, perhaps because memory ran out ({text}): try fewer, with "
            "DATALOADER.NUM_WORKERS"
        )
    # A collective operation fails if another process of the run has ended.
    if isinstance(error, RuntimeError) and ("gloo/transport" in text or "ncclRemoteError" in text):
        reason = text.split(". ")[0]
        return f"another process of the run has ended; see its output for the reason ({reason})"
    return _runtime_failure(error.__cause__ or error.__context__)


def _is_dead_worker(error: BaseException) -> bool:
    """Returns whether a data worker died: torch reports its death or finds its pipe closed."""
    if isinstance(error, RuntimeError):
        # "Caught KeyError in DataLoader worker process 0" is a bug in the worker's code.
        return "DataLoader worker (pid" in str(error)
    files = [step.filename for step in traceback.extract_tb(error.__traceback__)]
    in_loader = any(file.endswith("torch/utils/data/dataloader.py") for file in files)
    return in_loader and isinstance(error, (ConnectionError, EOFError))


def _quiet_thread(
    args: threading.ExceptHookArgs, otherwise: Callable[..., Any] = threading.excepthook
) -> None:
    """Prints no traceback for a thread that cannot write, as TensorBoard's thread passes its error
    to the main thread, and a traceback would interrupt the one line about the error."""
    if getattr(args.exc_value, "errno", None) not in _ADVICE:
        otherwise(args)
