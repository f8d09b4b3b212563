"""Runs the trainings of a plan as processes, as many at a time as asked for."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import rambo_det

from .plan import Run
from .progress import Progress
from .record import LOCK, check_same_run, last_iteration, read_record, write_record
from .versions import source_digest

_POLL = 0.2  # seconds
_OUTPUT = "output.txt"


def run_all(
    runs: Sequence[Run],
    jobs: int,
    threads: int,
    keep: str = "last",
    progress: Progress | None = None,
) -> list[Run]:
    """Does what is left to do; a run that fails stops no other.

    What is finished stays as it is, what was begun goes on from its last checkpoint.

    Args:
        runs: to be done, in this order.
        jobs: how many at a time.
        threads: of each process.
        keep: which checkpoints of a finished run stay: "all", "last", with the best one where that
            is kept, or "none".
        progress: where to show it.

    Returns:
        The runs that failed; their records have the ``error``.

    Raises:
        InputError: the folder of a run holds another one. Nothing is started then.
    """
    for run in runs:
        check_same_run(run)
    finished = {run.folder for run in runs if _is_finished(run)}
    waiting = [run for run in runs if run.folder not in finished]
    total = sum(run.iterations for run in runs)
    own = progress or Progress(total, _iterations(runs, finished), len(runs), len(finished))
    if finished:
        own.say(f"{len(finished)} of {len(runs)} runs are finished already")
    active: list[_Process] = []
    failed: list[Run] = []
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                active.append(_Process(waiting.pop(0), threads, own))
            time.sleep(_POLL)
            for process in list(active):
                status = process.poll()
                if status is None:
                    continue
                active.remove(process)
                finished.add(process.run.folder)
                if status == 0:
                    process.finish(keep)
                else:
                    failed.append(process.run)
                    own.say(f"FAILED {_name(process.run)}: {process.fail(status)}")
            evaluating = [
                _name(process.run)
                for process in active
                if last_iteration(process.run.folder) >= process.run.iterations
            ]
            own.update(_iterations(runs, finished), len(finished), evaluating)
    finally:
        for process in active:
            process.end()
        own.close()
    return failed


def _iterations(runs: Sequence[Run], finished: set[Path]) -> int:
    return sum(
        run.iterations
        if run.folder in finished
        else min(last_iteration(run.folder), run.iterations)
        for run in runs
    )


def _is_finished(run: Run) -> bool:
    return read_record(run.folder).get("status") == "finished"


def _name(run: Run) -> str:
    return f"{run.data}, {run.variant}, seed {run.seed}"


class _Process:
    """One training. It waits until no other process works in the folder.

    A comparison that is killed leaves its trainings behind: they hold a lock as long as they live.
    Another comparison that has the run too holds it until it has written down how the run ended.
    """

    def __init__(self, run: Run, threads: int, progress: Progress) -> None:
        self.run = run
        self._threads = threads
        self._progress = progress
        run.folder.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = open(run.folder / LOCK, "w")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self._told = False
        self.poll()

    def poll(self) -> int | None:
        """The exit status, 0 of a run that another comparison has finished; None: not ended yet.

        Raises:
            InputError: another comparison has begun another run in the folder.
        """
        if self._process is None:
            if not self._locked():
                return None
            check_same_run(self.run)
            if _is_finished(self.run):
                return 0
            self._start()
        assert self._process is not None
        return self._process.poll()

    def finish(self, keep: str) -> None:
        """Writes down that it is finished, and removes the checkpoints that are not to be kept."""
        if self._process is not None:
            write_record(self.run.folder, status="finished", error=None)
            _drop_checkpoints(self.run.folder, keep)
        self._lock.close()

    def end(self) -> None:
        """Ends the training, which can be gone on with."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._lock.close()

    def fail(self, status: int) -> str:
        """Writes down, and returns, why it failed."""
        lines = (self.run.folder / _OUTPUT).read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else ""
        if status < 0:
            reason = f"killed by signal {-status}"
        error = f"{reason} (exit status {status}, {self.run.folder / _OUTPUT})"
        write_record(self.run.folder, status="failed", error=error)
        self._lock.close()
        return error

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not self._told:
                self._progress.say(f"{_name(self.run)}: waiting for the process that trains it")
            self._told = True
            return False
        return True

    def _start(self) -> None:
        folder, command = self.run.folder, list(self.run.command)
        write_record(
            folder, status="started", settings=self.run.settings, command=command,
            source=source_digest(), error=None,
        )  # fmt: skip
        begun = any((folder / name).exists() for name in ("last_checkpoint", "metrics.json"))
        if begun:
            command.insert(3, "--resume")  # behind python -m rambo_det.cli.train
        package = str(Path(rambo_det.__file__).resolve().parents[1])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = {key: str(self._threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with open(folder / _OUTPUT, "ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **threads},
                pass_fds=[self._lock.fileno()], start_new_session=True,
            )  # fmt: skip
        self._progress.say(f"{'go on with' if begun else 'start'} {_name(self.run)}")


def _drop_checkpoints(folder: Path, keep: str) -> None:
    """Removes the checkpoints of a finished run that are not to be kept."""
    if keep == "all":
        return
    for file in folder.glob("model_*.pth"):
        # The best one is there because RAMBO_TRAIN.KEEP_BEST asked for it.
        if keep == "none" or file.name not in ("model_final.pth", "model_best.pth"):
            file.unlink()
    if keep == "none":
        (folder / "last_checkpoint").unlink(missing_ok=True)
