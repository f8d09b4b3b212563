"""Starts the processes of a run, or joins those that a cluster's launcher has started."""

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch

from ..errors import InputError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def torchrun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns torchrun's variables for a task of SLURM's srun; {} unless srun started several.

    Raises InputError if the nodes have different numbers of tasks.
    """
    size = int(environment.get("SLURM_NTASKS", 1))
    # A script started by hand is one process, even in an allocation of several tasks.
    if size < 2 or "SLURM_STEP_ID" not in environment:
        return {}
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
    if size % nodes:
        raise InputError(f"SLURM started {size} tasks on {nodes} nodes: set --ntasks-per-node")
    numbers = (environment["SLURM_PROCID"], size, environment["SLURM_LOCALID"], size // nodes)
    # All processes of a job get the same port; different jobs get different ports.
    rendezvous = {
        "MASTER_ADDR": environment.get("SLURM_LAUNCH_NODE_IPADDR", ""),
        "MASTER_PORT": str(20000 + int(environment["SLURM_JOB_ID"]) % 20000),
    }
    rendezvous |= {name: environment[name] for name in rendezvous if name in environment}
    return {**dict(zip(_TORCHRUN, map(str, numbers), strict=True)), **rendezvous}


def launch(process: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs ``process(args)`` in the processes of torchrun or SLURM, if there are several; else in
    the processes that Detectron2's ``launch`` starts."""
    if not all(name in os.environ for name in _TORCHRUN):
        os.environ.update(torchrun_variables(os.environ))
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "LOCAL_WORLD_SIZE" not in os.environ:
        detectron2_launch(
            process, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank,
            dist_url=args.dist_url, args=(args,),
        )  # fmt: skip
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    # Detectron2 v0.6 has no function that sets the local process group.
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        comm.synchronize()
        process(args)
    finally:
        dist.destroy_process_group()
        comm._LOCAL_PROCESS_GROUP = None
