"""A run of the command line that is killed and gone on with, in one or several real processes."""

import json
import os
import signal
import time

import torch

from .forked import free_port, start_script
from .models import THIN

PERIOD = 3  # of the checkpoints
TIMEOUT = 300

YAML = [
    *THIN, "INPUT.MIN_SIZE_TRAIN", "(64,80,96)", "SOLVER.CHECKPOINT_PERIOD", str(PERIOD),
    "SOLVER.WARMUP_ITERS", "4",
]  # fmt: skip


class Run:
    """A run of some thousand-parameter model: one folder, and the processes that work on it.

    Args:
        folder: of the run, made here.
        tool, config, data, opts: of the command line.
        iterations: the run's length.
        world: processes, started as torchrun starts them.
    """

    def __init__(self, folder, tool, config, data, iterations, *opts, world=1):
        self.out = folder / "out"
        self.log = folder / "losses.jsonl"
        self._outputs = [folder / f"{rank}.txt" for rank in range(world)]
        self._world = world
        yaml = tool == "train_net.py"
        self._assign = (lambda k, v: [k, str(v)]) if yaml else (lambda k, v: [f"{k}={v}"])
        self._workers = "DATALOADER.NUM_WORKERS" if yaml else "dataloader.train.num_workers"
        self._tool = ["tests/logged_run.py", self.log, f"tools/{tool}"]
        self._arguments = ["--config", str(config), *data, *opts]
        for yaml_key, key, value in (
            ("SOLVER.MAX_ITER", "train.max_iter", iterations),
            ("OUTPUT_DIR", "train.output_dir", self.out),
        ):
            self._arguments += self._assign(yaml_key if yaml else key, value)
        folder.mkdir()

    def start(self, *flags, workers=0):
        """The processes, that of rank 0 first."""
        more = self._assign(self._workers, workers)
        command = [*self._tool, *flags, *self._arguments, *more]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        processes = []
        for rank, output in enumerate(self._outputs):
            numbers = {"RANK": rank, "LOCAL_RANK": rank} | dict.fromkeys(
                ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), self._world
            )
            environment = {**meeting, **{k: str(v) for k, v in numbers.items()}}
            processes.append(start_script(environment, (output, output), command))
        return processes

    def finish(self, *flags, **kwargs):
        for process in self.start(*flags, **kwargs):
            process.join(TIMEOUT)
            assert process.exitcode == 0, self.printed()

    def kill(self, *flags, steps, in_checkpoint, delay, ranks=None, **kwargs):
        """Starts and kills after that many more steps; in the next checkpoint, if asked for.

        Args:
            ranks: which of the processes, None: all. The others have to end by themselves.
        """
        known = len(self.losses())
        processes = self.start(*flags, **kwargs)
        self._wait(processes, lambda: len(self.losses()) >= known + steps)
        if in_checkpoint:
            self._wait(processes, lambda: any(self.out.glob("*.part")))
        else:
            time.sleep(delay)
        victims = list(ranks or range(self._world))
        for rank in victims:
            os.kill(processes[rank].pid, signal.SIGKILL)
        for rank, process in enumerate(processes):
            process.join(TIMEOUT)
            if rank in victims:
                assert process.exitcode == -signal.SIGKILL, f"{rank} had ended\n{self.printed()}"
            else:  # it says why, and ends
                assert process.exitcode == 1, f"{rank}: {process.exitcode}\n{self.printed()}"
                last = self._outputs[rank].read_text().splitlines()[-1]
                assert last.startswith("error: another process of the run has ended"), last

    def _wait(self, processes, happened):
        give_up = time.monotonic() + TIMEOUT
        while not happened():
            assert all(process.is_alive() for process in processes), self.printed()
            assert time.monotonic() < give_up, self.printed()
            time.sleep(0.0005)

    def printed(self):
        """The end of what each process has printed."""
        return "\n".join(file.read_text()[-4000:] for file in self._outputs if file.exists())

    def losses(self):
        """``(iteration, exact losses)`` of each step that was ever made, in order."""
        try:
            lines = [json.loads(line) for line in self.log.read_text().splitlines(keepends=True)]
        except (FileNotFoundError, json.JSONDecodeError):  # not yet, or just being written
            return []
        return [(line.pop("iteration"), line) for line in lines]

    def final(self):
        return torch.load(self.out / "model_final.pth", weights_only=True)


def assert_equal(a, b, where="checkpoint"):
    """Whole checkpoints, the metadata of state dicts included, bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
        assert_equal(getattr(a, "_metadata", None), getattr(b, "_metadata", None), f"{where}[meta]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where
