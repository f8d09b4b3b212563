"""Runs of several processes, started as a cluster starts them."""

import json
import os
import re

import detectron2.utils.comm as comm
import pytest
import torch
import torch.distributed.run

from rambo_det.engine.launch import torchrun_variables
from rambo_det.errors import InputError
from rambo_det.losses.sort_keys import EMPTY_KEY

from .command_line import own_data
from .forked import REPOSITORY, free_port, run_together
from .models import QUICKSTART, weights_of

MEMORY = "roi_heads.box_predictor.rambo_loss.memory"
# The variables of the first of two tasks on two nodes.
SLURM = {
    "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip


@pytest.fixture
def training(tmp_path):
    """Returns the command line of a small run, beginning with the tool."""
    data, keys = own_data(tmp_path, "ln")
    keys += ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", tmp_path / "out"]
    keys += ["SEED", "1", "MODEL.RAMBO.MEMORY_LENGTH", "4", "MODEL.DEVICE", "cpu"]
    return [str(x) for x in ("tools/train_net.py", "--config", QUICKSTART, *data, *keys)]


def run_all(tmp_path, commands):
    paths = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return run_together(tmp_path, commands, [environment] * len(commands))


def saved_memory(folder):
    return weights_of(folder / "model_final.pth")._metadata[MEMORY]["memory"]


def test_two_machines_with_two_processes_each_by_torchrun(training, tmp_path):
    torchrun = [torch.distributed.run.__file__, "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port"]
    torchrun.append(free_port())
    commands = [[*torchrun, "--node-rank", str(rank), *training] for rank in range(2)]
    outputs = run_all(tmp_path, commands)
    assert sum("checkpoint: " in output for output in outputs) == 1  # one of four prints the table
    memory = saved_memory(tmp_path / "out")
    # The checkpoint has the negatives of each of the four processes, and the positives of all.
    assert memory["negatives"].shape[0] == 4 and int(memory["written"]) == 2
    there = memory["negatives"] != EMPTY_KEY
    assert there[:, :2].any(-1).all() and (memory["positives"][:, :2, 0] != EMPTY_KEY).all()
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert any(json.loads(line).get("rambo/bytes_sent", 0) > 0 for line in lines)


def test_tasks_of_slurm(training, tmp_path):
    """Two tasks on two nodes train together when srun starts them."""
    first = {**SLURM, "MASTER_PORT": free_port()}
    tasks = [first, {**first, "SLURM_PROCID": "1"}]
    outputs = run_together(tmp_path, [training] * 2, tasks)
    assert sum("checkpoint: " in output for output in outputs) == 1
    assert saved_memory(tmp_path / "out")["negatives"].shape[0] == 2
    assert re.search(r"^\| +AP \|", outputs[0], re.M)


@pytest.mark.skipif(
    torch.cuda.is_available() or not hasattr(comm, "create_local_process_group"),
    reason="two machines need a GPU each, or none and Detectron2's main branch",
)
def test_two_machines_by_detectron2s_launcher(training, tmp_path):
    flags = ["--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    commands = [[training[0], *flags, "--machine-rank", rank, *training[1:]] for rank in range(2)]
    outputs = run_all(tmp_path, commands)
    assert sum("checkpoint: " in output for output in outputs) == 1
    assert saved_memory(tmp_path / "out")["negatives"].shape[0] == 2


def test_a_task_of_slurm_in_the_variables_of_torchrun():
    assert torchrun_variables({}) == {}
    task = {**SLURM, "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}
    assert torchrun_variables(task) == {
        "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "20007",
    }  # fmt: skip
    assert torchrun_variables({**task, "MASTER_PORT": "29500"})["MASTER_PORT"] == "29500"
    # A script that is run by hand in an allocation of several tasks is a single process.
    assert torchrun_variables({k: v for k, v in task.items() if k != "SLURM_STEP_ID"}) == {}
    with pytest.raises(InputError, match="--ntasks-per-node"):
        torchrun_variables({**task, "SLURM_NTASKS": "3"})
