#!/usr/bin/env python3
"""Checks and measures the loss on a GPU: one command, one folder of numbers.

    python tools/gpu_check.py --out output/gpu_check

Each part runs in a process of its own, with the time limit in ``PARTS``: 20 minutes in all. A part
that succeeds leaves its results in FOLDER/PART.json. A part whose file exists is not run again, so
the same command continues where an earlier one was killed or failed. FOLDER/gpu_check.json has all
results and errors. Without a GPU the parts run on small inputs.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TESTS = ("tests/test_binning.py", "tests/test_cuda.py", "tests/test_no_waiting.py")
TINY = ("--images", "1", "--size", "64", "64", "--proposals", "32", "--pairs", "2")
Result = dict[str, Any]  # results of a part; the printed table shows "summary"


def run_python(*command: Any) -> None:
    """Runs Python; if that fails, ends this process, and the last line of output is the error."""
    if code := subprocess.call([sys.executable, *map(str, command)], cwd=ROOT):
        sys.exit(code)


def about(args: argparse.Namespace) -> Result:
    """Returns device, versions and --quick, which must be the same for all results in a folder."""
    import detectron2
    import torch
    from benchmark_loss import backend_of

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    machine = {"device": device, "quick": args.quick, "python": platform.python_version()}
    machine |= {"torch": torch.__version__, "triton": None, "backend": backend_of(device)}
    with contextlib.suppress(ImportError):
        machine["triton"] = __import__("triton").__version__
    # Both the release and main have version 0.6; only main has a ViT.
    is_main = (Path(detectron2.__file__).parent / "modeling/backbone/vit.py").is_file()
    machine["detectron2"] = "main" if is_main else "v0.6"
    if device == "cuda":
        machine["card"] = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            machine["driver"] = subprocess.check_output(query, text=True).split()[0]
    return machine


def tests(args: argparse.Namespace) -> Result:
    """Runs the tests that use a GPU; ends with an error that names the failed tests, if any."""
    command = [sys.executable, "-m", "pytest", "-v", "-rsfE", "-p", "no:cacheprovider"]
    command += TESTS[1:] if args.quick else TESTS
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)  # the log of a test that takes too long
            lines.append(line.strip("= \n"))
    if process.returncode:
        failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        sys.exit("; ".join([lines[-1], *failures]) if lines else 1)
    numbers = {outcome: int(number) for number, outcome in re.findall(r"(\d+) ([a-z]+)", lines[-1])}
    skipped = [line for line in lines if line.startswith("SKIPPED")]
    return {"numbers": numbers, "skipped": skipped, "summary": lines[-1]}


def exact(args: argparse.Namespace) -> Result:
    """Compares the Triton kernel with plain PyTorch on the scores of an untrained RetinaNet."""
    on_gpu, interpreted = args.device == "cuda", os.environ.get("TRITON_INTERPRET") == "1"
    if not (on_gpu or (interpreted and util.find_spec("triton"))):
        return {"summary": "no triton: Triton needs a GPU, or TRITON_INTERPRET=1"}
    import torch
    from benchmark_step import MODELS, TimedModel, make_batch
    from detectron2.utils.events import EventStorage

    from rambo_det.losses import RamboLoss, binning
    from rambo_det.losses.binning import reference, triton_kernel

    number, size = (4, (800, 1333)) if on_gpu and not args.quick else (1, (64, 64))
    model = TimedModel(MODELS["RetinaNet"][1], args.device, 512)
    with EventStorage(0), torch.no_grad():
        model.model(make_batch(number, size, 32))
    every = 1 if on_gpu else 60  # the interpreter is slow
    scores, gt_classes = (rows[::every].contiguous() for rows in model.logits_and_classes())
    layouts, cases = {"rows": scores, "columns": scores.t().contiguous().t()}, {}
    # Triton's interpreter truncates to bfloat16 instead of rounding.
    dtypes = ("float32", "float16", "bfloat16")[: 3 if on_gpu else 2]
    for dtype, (layout, values) in itertools.product(dtypes, layouts.items()):
        results = []
        for backend in (triton_kernel, reference):
            leaf = values.to(getattr(torch, dtype), copy=True).requires_grad_()
            with mock.patch.object(binning, "_backend", return_value=backend):
                value = RamboLoss(scores.shape[1]).to(args.device)(leaf, gt_classes)
                value.backward()
            results.append((value.detach(), leaf.grad))
        (value, grad), (wanted, wanted_grad) = results
        cases[f"{dtype}, {layout}"] = {
            "equal": torch.equal(value, wanted) and torch.equal(grad, wanted_grad),
            "loss_difference": (value - wanted).abs().item(),
            "largest_difference": (grad.double() - wanted_grad.double()).abs().max().item(),
            "largest_gradient": wanted_grad.abs().max().item(),
        }
    equal = sum(case["equal"] for case in cases.values())
    worst = max(case["largest_difference"] for case in cases.values())
    summary = f"{equal} of {len(cases)} equal to the last digit, largest difference {worst:.1e}"
    if wrong := wrong_cases(cases):
        sys.exit(f"Triton's kernel is wrong with {'; '.join(wrong)}: {summary}")
    return {"scores": grad.numel(), "cases": cases, "summary": summary}


def wrong_cases(cases: dict[str, Result]) -> list[str]:
    """Returns the names of the cases whose difference is more than rounding."""
    return [
        name
        for name, case in cases.items()
        if not case["loss_difference"] <= 1e-5
        or not case["largest_difference"]
        <= case["largest_gradient"] * (1e-5 if "float32" in name else 1e-2)
    ]


def loss(args: argparse.Namespace) -> Result:
    """Times the loss and other losses with benchmark_loss.py."""
    few = ["--quick"] if args.quick or args.device == "cpu" else ["--seconds", "2"]
    few += ["--sizes", "1e4", "--seconds", "0.05"] if args.quick else []
    run_python("tools/benchmark_loss.py", "--device", args.device, "--output", args.out, *few)
    measured = json.loads((args.out / "benchmark.json").read_text())
    largest = max(case["n"] for case in measured["results"])
    cases = [case["methods"]["RamboLoss"] for case in measured["results"] if case["n"] == largest]
    ratios = [case["to_focal"] for case in cases]
    ratio = f"{min(ratios):.2f} to {max(ratios):.2f} times focal loss's time"
    return {**measured, "summary": f"N {largest:.0e}: {ratio}"}


def step(args: argparse.Namespace, *more: str) -> Result:
    """Times training steps with the stock loss and with RaMBO, using benchmark_step.py."""
    few = TINY if args.quick else ("--pairs", "10") if args.device == "cuda" else ("--quick",)
    file = args.out / "measured.json"
    run_python("tools/benchmark_step.py", "--device", args.device, "--out", file, *few, *more)
    measured = json.loads(file.read_text())
    summary = "times the stock step:"
    for result in measured["results"]:
        summary += f" {result['model']} {result['parts']['step']['ratio']:.3f}"
    return {**measured, "summary": summary}


def step_amp(args: argparse.Namespace) -> Result:
    """As step, with mixed precision."""
    if args.device == "cpu":
        return {"summary": "mixed precision needs a GPU"}
    return step(args, "--amp")


def one_loss(args: argparse.Namespace, n: float) -> tuple[Any, Callable[[Any], Any]]:
    """Returns ``n`` scores of 80 classes, fewer in small runs, and the loss as their function."""
    from benchmark_loss import make_case

    from rambo_det.losses import RamboLoss

    n = 1e5 if args.quick else n if args.device == "cuda" else n / 10
    scores, gt_classes = make_case(int(n), 80, 5e-5, "mid", args.device)
    criterion = RamboLoss(80).to(args.device)
    return scores.requires_grad_(), lambda scores: criterion(scores, gt_classes)


def bandwidth(args: argparse.Namespace) -> Result:
    """Compares the bytes per second of a call with those of a copy, and profiles the call."""
    from benchmark_loss import run_once, timed
    from torch.profiler import profile

    leaf, call = one_loss(args, 1e8)
    source, target, found = leaf.detach(), leaf.detach().clone(), {}
    for name, moved, function in (
        ("copy", 2, lambda: target.copy_(source)),
        # Forward reads the scores; backward reads them again and writes their gradient.
        ("forward", 1, lambda: call(leaf)),
        ("forward and backward", 3, lambda: run_once(call, leaf)),
    ):
        ms = statistics.median([timed(function) for _ in range(25)][5:])
        found[name] = {"ms": ms, "gb_per_s": moved * source.nbytes / ms / 1e6}
        found[name]["of_copy"] = found[name]["gb_per_s"] / found["copy"]["gb_per_s"]
    with profile() as profiled:
        run_once(call, leaf)
    rows, on_gpu = profiled.key_averages(), args.device == "cuda"
    us = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kernels = [row for row in rows if row.device_type.name != "CPU" or not on_gpu]
    kernels = [{"name": k.key[:120], "us": getattr(k, us), "launches": k.count} for k in kernels]
    found["kernels"] = sorted(kernels, key=lambda kernel: -kernel["us"])
    waits = ("cudaStreamSynchronize", "cudaEventSynchronize", "Memcpy DtoH", "aten::_local_scalar")
    waits = [row for row in rows if row.key.startswith(waits)]
    found["waits"] = {row.key: {"us": row.cpu_time_total, "number": row.count} for row in waits}
    numbers = [f"{row.key} {row.count}" for row in waits] or ["none"]
    launches = sum(kernel["launches"] for kernel in kernels)
    share = f"{found['forward and backward']['of_copy']:.1%} of a copy's bandwidth"
    return found | {"summary": f"{share}; {launches} launches; waits: {', '.join(numbers)}"}


def graph(args: argparse.Namespace) -> Result:
    """Checks whether a call can be captured in a CUDA graph and whether its replay is right."""
    if args.device == "cpu":
        return {"works": None, "summary": "no CUDA graph without a GPU"}
    import torch
    from benchmark_loss import run_once

    leaf, call = one_loss(args, 1e6)
    with torch.cuda.stream(torch.cuda.Stream()):  # warm-up, as in torch's documentation
        for _ in range(3):
            run_once(call, leaf)
    leaf.grad, captured = None, torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured):
            call(leaf).backward()
    except Exception as error:
        while error.__context__ is not None:  # the first error made the capture's end fail
            error = error.__context__
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return {"works": False, "summary": f"cannot be captured: {why}"}
    leaf.data.mul_(1.5)
    captured.replay()
    replayed = leaf.grad.clone()
    run_once(call, leaf)
    if not torch.equal(replayed, leaf.grad):
        sys.exit("a call can be captured, but its replay is wrong")
    return {"works": True, "summary": "captured; the replay is right"}


PARTS = {
    tests: 300, exact: 100, loss: 400, step: 160, step_amp: 140, bandwidth: 50, graph: 50,
}  # fmt: skip
NAMES = [part.__name__ for part in PARTS]
WORKERS = {worker.__name__: worker for worker in (about, *PARTS)}


def write(file: Path, value: Any) -> None:
    """Writes a value as json; the file gets its name only once it is complete."""
    file.with_suffix(".tmp").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(file.with_suffix(".tmp"), file)


def work(args: argparse.Namespace) -> None:
    """Runs a worker in this process; kills it and its children when the check ends."""

    def watch() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    write(args.out / "result.json", WORKERS[args.worker](args))


def run_worker(name: str, args: argparse.Namespace, limit: float) -> Result:
    """Runs a worker in a new process; returns its results, or its ``error`` and end of ``log``."""
    scratch = args.out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    command = [sys.executable, __file__, "--worker", name, "--out", scratch]
    command += (["--device", args.device] if args.device else []) + ["--quick"] * args.quick
    with (scratch / "log").open("w") as log:
        to = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
        process = subprocess.Popen(command, **to, start_new_session=True)
        try:
            code = process.wait(limit)
            reason = f"ended by {signal.Signals(-code).name}" if code < 0 else ""
        except subprocess.TimeoutExpired:
            reason = f"took longer than {limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    lines = [x for x in (scratch / "log").read_text(errors="replace").splitlines() if x.strip()]
    if (scratch / "result.json").is_file():
        result = json.loads((scratch / "result.json").read_text())
    else:
        result = {"error": reason or ["no output", *lines][-1], "log": lines[-40:]}
    shutil.rmtree(scratch)
    return result


def main() -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("output/gpu_check"), metavar="FOLDER")
    add("--parts", nargs="+", choices=NAMES, default=NAMES, help="parts to run (default: all)")
    add("--limit", type=float, metavar="SECONDS", help="time limit per part")
    add("--device", choices=["cuda", "cpu"], help="default: cuda if this machine has a GPU")
    add("--quick", action="store_true", help="about a minute: check only that everything runs")
    add("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.worker:
        work(args)
        return 0
    try:
        machine = run_worker("about", args, 120)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    if "error" in machine:
        parser.error(machine["error"])
    args.device, found = machine["device"], {}
    if args.device == "cpu":
        print("Device: cpu. Runs small versions of the parts and skips what needs a GPU.")
    for file in (args.out / f"{name}.json" for name in NAMES):
        try:
            found[file.stem] = json.loads(file.read_text())
            same = found[file.stem]["about"] == machine
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError):
            same = False
        if not same:
            parser.error(f"{file} is from another machine, version or --quick setting: remove it")
    for part, limit in PARTS.items():
        name, start = part.__name__, time.monotonic()
        if name in found or name not in args.parts:
            continue
        print(f"{name} ...", flush=True)
        found[name] = run_worker(name, args, args.limit or limit)
        found[name] |= {"about": machine, "seconds": round(time.monotonic() - start, 1)}
        if "error" not in found[name]:
            write(args.out / f"{name}.json", found[name])
    whole = {"about": machine, "command": shlex.join(sys.argv), "parts": found}
    write(args.out / "gpu_check.json", whole)
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    for name in NAMES:
        row = {"summary": "not run", "seconds": 0, **found.get(name, {})}
        text = f"FAILED: {row['error']}" if "error" in row else row["summary"]
        print(f"{name:9s} {row['seconds']:5.0f} s  {text}")
    return int(any("error" in row for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
