"""Runs the trainings of a plan as processes, ``jobs`` at a time."""

import ast
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

import rambo_det

from ..engine.files import PART_SUFFIX, atomic_write
from ..engine.user_code import new_config
from ..errors import InputError
from .plan import Run, flat_settings

_POLL = 0.2  # seconds
_OUTPUT, _RECORD = "output.txt", "compare.json"
# Subpackages that do not affect the numbers of a training; source_digest leaves them out.
_NOT_TRAINED_BY = ("cli", "compare")
# Files that ``keep`` leaves. model_best.pth exists only if RAMBO_TRAIN.KEEP_BEST is set.
_CHECKPOINTS_TO_KEEP = {
    "last": ("model_final.pth", "model_raw.pth", "model_best.pth", "last_checkpoint"),
    "none": (),
}


def run_all(
    runs: Sequence[Run], jobs: int, threads: int, keep: str = "last", lock: IO[str] | None = None
) -> list[Run]:
    """Trains the unfinished runs, ``jobs`` at a time; returns the runs that failed.

    Finished runs stay unchanged. Runs that were begun resume from their last checkpoint. The record
    of a failed run has its ``error``. Raises InputError, before it starts anything, if the folder
    of a run holds a different run.

    Args:
        keep: which checkpoints of a finished run stay: "all"; "last", which includes the best one
            if the run has one; or "none".
        lock: an open file that the trainings hold open as long as they live.
    """
    for run in runs:
        _check_same_run(run)
    waiting = [run for run in runs if read_record(run.folder).get("status") != "finished"]
    active: dict[Run, subprocess.Popen[bytes]] = {}
    failed: list[Run] = []
    done = {run.folder: run.iterations for run in runs if run not in waiting}
    bar = tqdm(
        total=sum(run.iterations for run in runs), initial=sum(done.values()), unit="it",
        file=sys.stdout, dynamic_ncols=True, smoothing=0.05,
        mininterval=0.1 if sys.stdout.isatty() else 60,
    )  # fmt: skip
    if done:
        bar.write(f"{len(done)} of {len(runs)} runs are already finished")
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                active[run] = _start(run, threads, lock, bar)
            time.sleep(_POLL)
            for run, process in list(active.items()):
                lines = read_metrics(run.folder, 65536)
                last = max((line["iteration"] + 1 for line in lines), default=0)
                done[run.folder] = min(last, run.iterations)
                if process.poll() is None:
                    continue
                del active[run]
                done[run.folder] = run.iterations
                if process.returncode:
                    failed.append(run)
                    error = _failure_reason(run, process.returncode)
                    write_record(run.folder, status="failed", error=error)
                    bar.write(f"FAILED {run.name}: {error}")
                    continue
                write_record(run.folder, status="finished", error=None)
                for file in [*run.folder.glob("model_*.pth"), run.folder / "last_checkpoint"]:
                    if keep != "all" and file.name not in _CHECKPOINTS_TO_KEEP[keep]:
                        file.unlink(missing_ok=True)
            left = len(waiting) + len(active)
            bar.set_postfix_str(f"{len(runs) - left} of {len(runs)} runs", refresh=False)
            bar.update(sum(done.values()) - bar.n)
    finally:
        for process in active.values():
            process.terminate()  # the run can be resumed
            process.wait()
        bar.close()
    return failed


@contextmanager
def folder_lock(folder: Path) -> Iterator[IO[str]]:
    """Locks the folder; first waits until no other comparison works in it.

    A comparison that is killed leaves its trainings running; they hold the lock too.
    """
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"waiting for another comparison, or its trainings, in {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _start(run: Run, threads: int, lock: IO[str] | None, bar: Any) -> subprocess.Popen[bytes]:
    command = list(run.command)
    begun = _has_begun(run)
    earlier = read_record(run.folder).get("source", "").split(", ") if begun else []
    sources = dict.fromkeys([*filter(None, earlier), source_digest()])
    write_record(
        run.folder, status="started", settings=run.settings, command=command,
        source=", ".join(sources), error=None,
    )  # fmt: skip
    if begun:
        command.insert(3, "--resume")  # after python -m rambo_det.cli.train
    package = str(Path(rambo_det.__file__).resolve().parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    cores = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    bar.write(f"{'continue' if begun else 'start'} {run.name}")
    with open(run.folder / _OUTPUT, "ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **cores},
            pass_fds=[lock.fileno()] if lock else [], start_new_session=True,
        )  # fmt: skip


def _failure_reason(run: Run, status: int) -> str:
    lines = (run.folder / _OUTPUT).read_text(errors="replace").strip().splitlines()
    reason = f"killed by signal {-status}" if status < 0 else lines[-1] if lines else ""
    return f"{reason} (exit status {status}, {run.folder / _OUTPUT})"


def source_digest() -> str:
    """Returns a digest, 12 hex digits, of the training code without comments and docstrings."""
    package = Path(rambo_det.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*")):
        name = file.relative_to(package)
        if file.suffix in (".py", ".cpp") and name.parts[0] not in _NOT_TRAINED_BY:
            code = file.read_bytes()
            if file.suffix == ".py":
                code = ast.unparse(_WithoutDocstrings().visit(ast.parse(code))).encode()
            digest.update(name.as_posix().encode() + b"\0" + code)
    return digest.hexdigest()[:12]


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:  # noqa: N802
        return None if isinstance(node.value, ast.Constant) else node


def damaged_run_error(folder: Path, what: str) -> InputError:
    """Returns the error for a run's folder with a missing or unreadable file."""
    return InputError(f"{folder}: {what}. Remove this folder; the same command then trains again")


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the record in a run's folder, {} if none exists; InputError if it is not json.

    Keys: ``settings``, ``command``, ``source`` (digests of the code that trained, separated by
    commas if the run was resumed with other code), ``status`` ("started", "finished" or "failed"),
    ``error`` (one line, if the run failed).
    """
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise damaged_run_error(folder, f"{_RECORD} cannot be read ({error})") from None
    return record if isinstance(record, dict) else {}


def write_record(folder: Path, **changes: Any) -> None:
    """Changes keys of a run's record; creates the folder and the file if they do not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {**read_record(folder), **changes}
    with atomic_write(str(folder / _RECORD), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)


def _has_begun(run: Run) -> bool:
    return any((run.folder / name).exists() for name in ("last_checkpoint", "metrics.json"))


def _check_same_run(run: Run) -> None:
    """Raises InputError if the folder of the run holds a different run or other files."""
    record = read_record(run.folder)
    names = {file.name for file in run.folder.iterdir()} if run.folder.is_dir() else set()
    if not record and names - {_RECORD + PART_SUFFIX}:
        raise InputError(f"{run.folder} has files of something else: use another --out")
    if not _has_begun(run):  # it failed at its start, perhaps because of a wrong setting
        return
    # A config key that is newer than the record had its default value then.
    old = {**flat_settings(new_config()), **record.get("settings", run.settings)}
    for key, new in sorted(run.settings.items()):
        # A dataset has no digest in old records or before its file exists; this is no difference.
        if old.get(key) != new and (key in old or not key.startswith("data ")):
            raise InputError(
                f"{run.folder} was trained with {key} = {old.get(key)!r}, but the command now "
                f"gives {new!r}: use another --out, or remove this folder"
            )


def read_metrics(folder: Path, tail: int = 2**62) -> Iterator[dict[str, Any]]:
    """Yields the lines in the last ``tail`` bytes of metrics.json; none if it does not exist."""
    try:
        with open(folder / "metrics.json", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - tail))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # incomplete: cut off by ``tail``, by a kill, or still in writing
            continue
