"""Starts the processes of a run, or joins those that a cluster's launcher has started."""

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT

from ..errors import InputError
from .keys import LAZY, YAML, get_key
from .lazy import read_lazy_config
from .setup import merged_config
from .user_code import import_user_code

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
    gpu, rank = _device(args).startswith("cuda"), int(os.environ["LOCAL_RANK"])
    if gpu:
        if rank >= (number := torch.cuda.device_count()):
            remedy = "start as many per machine as it has GPUs, and let each process see all GPUs"
            raise InputError(f"process {rank} of this machine finds only {number} GPUs: {remedy}")
        torch.cuda.set_device(rank)
    # Torch's own time-out is shorter: an evaluation in one process may take longer.
    dist.init_process_group("nccl" if gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    # Detectron2 v0.6 has no function that sets the local process group.
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    process(args)
    # Not after an error: with NCCL this waits for the other processes, and hides the error.
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None


def _device(args: argparse.Namespace) -> str:
    """Returns the name of the device that the run's config asks for."""
    import_user_code(args.imports)
    if args.lazy:
        cfg, keys = read_lazy_config(args.config_file, args.opts, ("train",)), LAZY
    else:
        cfg, keys = merged_config(args), YAML
    return str(get_key(cfg, keys.device))
