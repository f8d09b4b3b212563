"""``python tests/logged_run.py LOSSES TOOL ARGUMENTS…``: a tool that trains, as a user runs it.

Each step's losses are appended to the file LOSSES, exact, before anything is done after the step:
metrics.json has medians of 20.
"""

import json
import runpy
import sys

from detectron2.engine import TrainerBase


def log_losses(file: str) -> None:
    after_step = TrainerBase.after_step

    def log_first(trainer):
        latest = trainer.storage.latest()  # numbers, or with the iteration that they are of
        values = {k: v[0] if isinstance(v, tuple) else v for k, v in latest.items() if "loss" in k}
        if values:  # of several processes the main one has them, the mean of all
            line = {"iteration": trainer.iter, **{k: v.hex() for k, v in values.items()}}
            with open(file, "a") as f:
                f.write(json.dumps(line) + "\n")
        after_step(trainer)

    TrainerBase.after_step = log_first


if __name__ == "__main__":
    losses, tool, *sys.argv[1:] = sys.argv[1:]
    log_losses(losses)
    runpy.run_path(tool, run_name="__main__")
