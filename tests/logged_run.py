"""``python tests/logged_run.py LOSSES TOOL ARGUMENTS…``: runs a training tool and logs its losses.

Appends the exact losses of each step to the file LOSSES, before any hook runs after the step.
metrics.json cannot replace this file: it has medians of 20 steps.
"""

import json
import runpy
import sys

from detectron2.engine import TrainerBase


def log_losses(file: str) -> None:
    after_step = TrainerBase.after_step

    def log_first(trainer):
        latest = trainer.storage.latest()  # value, or (value, iteration)
        values = {k: v[0] if isinstance(v, tuple) else v for k, v in latest.items() if "loss" in k}
        if values:  # only the main process has losses: the means over all processes
            line = {"iteration": trainer.iter, **{k: v.hex() for k, v in values.items()}}
            with open(file, "a") as f:
                f.write(json.dumps(line) + "\n")
        after_step(trainer)

    TrainerBase.after_step = log_first


if __name__ == "__main__":
    losses, tool, *sys.argv[1:] = sys.argv[1:]
    log_losses(losses)
    runpy.run_path(tool, run_name="__main__")
