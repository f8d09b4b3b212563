"""Helpers that start processes for tests, some forked from a server with all imports done.

Most of these processes run for less time than the imports take. They are still real processes.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

REPOSITORY = Path(__file__).resolve().parents[1]


def python(*words, **environment):
    """Runs ``python WORDS…`` in the repository; returns the CompletedProcess with its output."""
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def background(*words, **environment):
    """Starts ``python WORDS…`` in a new session, which can receive Ctrl-C; returns a Popen."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=REPOSITORY, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A background process of a shell script ignores SIGINT, and its children inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_until(condition, process, each=0.05):
    """Waits until the condition holds; checks the condition every ``each`` seconds.

    Fails if the process, of :func:`background` or :func:`start_script`, ends before.
    """
    end = time.monotonic() + 300
    while not condition():
        if isinstance(process, subprocess.Popen):
            assert process.poll() is None, process.communicate()
        else:
            assert process.is_alive(), f"it has ended with status {process.exitcode}"
        assert time.monotonic() < end, "it did not get there in 5 minutes"
        time.sleep(each)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "rambo_det.engine.trainer", "rambo_det.engine.lazy"])
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads this when imported
    forkserver.ensure_running()
    os.environ.pop("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    return context


def _run_script(environment, output, command):
    multiprocessing.set_start_method("fork", force=True)  # for data workers
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def start_script(environment, output, command):
    """Starts ``python COMMAND`` in the repository.

    Args:
        environment: variables to add to the environment of the tests.
        output: file to which the script's stdout and stderr are appended.
        command: script and arguments.

    Returns:
        The multiprocessing process.
    """
    arguments = environment, str(output), list(map(str, command))
    process = _server().Process(target=_run_script, args=arguments)
    process.start()
    return process


def run_together(folder, commands, environments):
    """Runs scripts at the same time, see :func:`start_script`, and checks that all succeed.

    Returns:
        What each script printed. The folder keeps it, until the next call, in a file for each.
    """
    outputs = [folder / f"printed{number}.txt" for number in range(len(commands))]
    for output in outputs:
        output.unlink(missing_ok=True)
    processes = list(map(start_script, environments, outputs, commands))
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    assert not any(codes), "\n".join(file.read_text()[-4000:] for file in outputs)
    return [file.read_text() for file in outputs]


def _check(rank, world, port, folder, check, args):
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
        check(rank, world, *args)
        Path(folder, f"{rank}.ok").touch()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
        raise


def in_processes(world, folder, check, *args):
    """Calls ``check(rank, world, *args)`` in ``world`` processes that gloo connects."""
    _server()
    try:
        torch.multiprocessing.start_processes(
            _check, (world, free_port(), str(folder), check, args), world, start_method="forkserver"
        )
    except Exception:
        pytest.fail("\n".join(f.read_text() for f in sorted(Path(folder).glob("*.error"))))
    assert len(list(Path(folder).glob("*.ok"))) == world
