"""Starts the processes of a run, or joins those that a cluster's launcher has started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch

from ..errors import InputError


class Started(NamedTuple):
    """What a launcher tells one of the processes it has started."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    init_method: str


def started(environment: Mapping[str, str]) -> Started | None:
    """The process as torchrun or SLURM's srun has started it; None if neither has, or but one.

    Args:
        environment: of the process.

    Raises:
        InputError: SLURM has a different number of tasks on its nodes.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if all(name in environment for name in names):
        meeting = "env://"
        numbers = [int(environment[name]) for name in names]
    elif int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in environment:
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
        size = int(environment["SLURM_NTASKS"])
        if size % nodes:
            raise InputError(
                f"SLURM started {size} tasks on {nodes} nodes: give each as many, with "
                "--ntasks-per-node"
            )
        numbers = [int(environment["SLURM_PROCID"]), size, int(environment["SLURM_LOCALID"])]
        numbers.append(size // nodes)
        host = environment.get("MASTER_ADDR", environment.get("SLURM_LAUNCH_NODE_IPADDR", ""))
        # A port that is the same for all processes of the job, and of another job another.
        port = environment.get("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))
        meeting = f"tcp://{host}:{port}"
    else:
        return None
    if numbers[1] == 1:
        return None
    return Started(*numbers, meeting)


def launch(process: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs ``process(args)`` in each process of the run.

    Those of torchrun or SLURM, if there are several; else as Detectron2's own ``launch``.

    Args:
        process: what each of them does.
        args: ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url``.
    """
    given = started(os.environ)
    if given is None:
        detectron2_launch(
            process, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank,
            dist_url=args.dist_url, args=(args,),
        )  # fmt: skip
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(given.local_rank)
    dist.init_process_group(
        "nccl" if gpu else "gloo", given.init_method, rank=given.rank, world_size=given.size
    )
    create_local_group(given)
    try:
        comm.synchronize()
        process(args)
    finally:
        dist.destroy_process_group()
        comm._LOCAL_PROCESS_GROUP = None


def create_local_group(given: Started) -> None:
    """Tells Detectron2 which processes share a machine."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(given.local_size)
        return
    # Detectron2 v0.5 has no function for it. Every process has to make every group.
    for first in range(0, given.size, given.local_size):
        group = dist.new_group(list(range(first, first + given.local_size)))
        if first <= given.rank < first + given.local_size:
            comm._LOCAL_PROCESS_GROUP = group
