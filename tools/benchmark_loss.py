#!/usr/bin/env python3
"""Times RaMBO's losses beside focal loss and others, forward and backward, on the same scores.

    python tools/benchmark_loss.py --output output/benchmark_loss [--quick] [--device cuda]

The methods run alternately in one process, so that a busy machine slows all of them alike. Writes
``benchmark.json`` and ``benchmark.png`` to the output folder and prints a table. Times are
medians; the spread is the range from the first to the third quartile. Peak memory is what a call
allocates at its peak, gradients included (torch.profiler, or CUDA's counters).
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler announces each start and stop

import torch
import torch.nn.functional as F
from baseline_losses import argsort_rambo, bucketed_ap, error_driven_ap
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rambo_det.cli.failures import exit_status  # noqa: E402
from rambo_det.data.files import make_folder  # noqa: E402
from rambo_det.errors import InputError, one_line  # noqa: E402
from rambo_det.losses import RamboLoss, binning, class_ap_loss  # noqa: E402

Method = Callable[[Tensor], Tensor]
SUMMARIZED = ("RamboLoss", "RamboLoss τ=4", "cross entropy", "bucketed AP", "double argsort")


def make_case(n: int, c: int, rate: float, regime: str, device: str) -> tuple[Tensor, Tensor]:
    """Returns scores ``(n // c, c)`` and classes. A row has one class; at most half of the rows are
    positive, whatever the rate."""
    g = torch.Generator().manual_seed(0)
    rows = max(n // c, 1)
    num = min(max(round(n * rate), 1), max(rows // 2, 1))
    gt = torch.full((rows,), c)
    gt[torch.randperm(rows, generator=g)[:num]] = torch.randint(c, (num,), generator=g)
    scores = torch.randn(rows, c, generator=g)
    if regime == "init":
        scores -= 4.6
    else:
        scores.mul_(1.5).sub_(7)
        found = (gt < c).nonzero()[:, 0]
        scores[found, gt[found]] += 6
    return scores.to(device), gt.to(device)


def one_hot(gt: Tensor, scores: Tensor) -> Tensor:
    """Returns the classes as 0 and 1, in the scores' shape and dtype; background is all 0."""
    return F.one_hot(gt, scores.shape[1] + 1)[:, :-1].to(scores.dtype)


def methods_for(gt: Tensor, scores: Tensor, limit: float) -> dict[str, Method]:
    """Returns the methods that are affordable here. ``limit`` bounds P * N for the O(P N) loss and
    P² for the bucketed loss."""
    c = scores.shape[1]
    target, num = one_hot(gt, scores), int((gt < c).sum())
    full, memory = RamboLoss(c), RamboLoss(c, memory_length=4)
    lambda_ = float(scores.shape[0]) ** 2  # slopes fall as 1 / (length of a list)²
    full.to(scores.device), memory.to(scores.device)
    found = {
        "focal": lambda s: sigmoid_focal_loss(s, target, reduction="sum"),
        "L_APC, one λ": lambda s: class_ap_loss(s, gt, lambda_=lambda_),
        "RamboLoss": lambda s: full(s, gt),
        "RamboLoss τ=4": lambda s: memory(s, gt),
        # The background's logit is 0.
        "cross entropy": lambda s: F.cross_entropy(F.pad(s, (0, 1)), gt),
    }
    if scores.numel() <= (10_000_000 if scores.is_cuda else 1_000_000):
        found["double argsort"] = lambda s: argsort_rambo(s, target, lambda_)
    if num**2 <= limit:
        found["bucketed AP"] = lambda s: bucketed_ap(s, target)
    if num * scores.numel() <= limit:
        found["error-driven AP"] = lambda s: error_driven_ap(s, target)
    return found


def timed(function: Callable[..., Any], *args: Any) -> float:
    """Returns the milliseconds that a call takes, including the GPU work that it starts."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    synchronize()
    start = time.perf_counter()
    function(*args)
    synchronize()
    return 1e3 * (time.perf_counter() - start)


def backend_of(device: str) -> str:
    """Returns the name of the code that counts the scores on a device: cpu, triton_kernel, or
    reference if the fast code does not run there."""
    made = binning._backend(torch.zeros(0, device=device).device)
    return str(made.__name__.rpartition(".")[2])


def run_once(method: Method, leaf: Tensor) -> None:
    leaf.grad = None
    method(leaf).backward()
    if leaf.is_cuda:
        torch.cuda.synchronize()


def peak_on_gpu(function: Callable[..., Any], *args: Any) -> int:
    """Returns the peak GPU memory of a call, in bytes above what was allocated before the call."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function(*args)
    return torch.cuda.max_memory_allocated() - before


def peak_memory(method: Method, leaf: Tensor) -> int:
    """Returns a call's peak memory in bytes above that before it, with the scores' gradient."""
    leaf.grad = None
    if leaf.is_cuda:
        return peak_on_gpu(run_once, method, leaf)
    with torch.profiler.profile(profile_memory=True) as profile:
        run_once(method, leaf)
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(itertools.accumulate(nbytes for _, nbytes in sorted(changes)), default=0)


def measure(case: dict, device: str, seconds: float, limit: float) -> dict:
    """Times all methods on a case; returns the case with the results of each method."""
    scores, gt = make_case(**case, device=device)
    leaf = scores.requires_grad_()
    methods = methods_for(gt, scores, limit)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(2):
        for method in methods.values():
            run_once(method, leaf)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["focal"]) < 3:
        for name, method in methods.items():
            times[name].append(timed(run_once, method, leaf))
    focal = statistics.median(times["focal"])
    result = {**case, "P": int((gt < case["c"]).sum()), "methods": {}}
    for name, method in methods.items():
        low, median, high = statistics.quantiles(times[name], n=4)
        result["methods"][name] = {
            "ms": median, "spread_ms": high - low, "to_focal": median / focal,
            "peak_mib": peak_memory(method, leaf) / 2**20,
        }  # fmt: skip
    if "double argsort" in methods:
        run_once(methods["L_APC, one λ"], leaf)
        got = leaf.grad
        run_once(methods["double argsort"], leaf)
        result["largest_gradient"] = leaf.grad.abs().max().item()
        result["largest_difference"] = (got - leaf.grad).abs().max().item()
    return result


def print_result(result: dict) -> None:
    tail = ""
    if "largest_difference" in result:
        largest, difference = result["largest_gradient"], result["largest_difference"]
        tail = f"  largest gradient {largest:.1e}, difference from the oracle's {difference:.1e}"
    print(f"\nN {result['n']:.0e}  C {result['c']}  P {result['P']}  {result['regime']}{tail}")
    for name, m in result["methods"].items():
        found = f"{m['ms']:10.2f} ms ± {m['spread_ms']:8.2f}  {m['to_focal']:7.2f}x focal"
        print(f"  {name:16s} {found}  {m['peak_mib']:8.1f} MiB", flush=True)


def plot(results: list[dict], path: Path) -> None:
    """Plots time over N, with a panel for each P/N and regime; medians over C."""
    rates = sorted({r["rate"] for r in results})
    figure = Figure(figsize=(10, 3.2 * len(rates)), layout="constrained")
    axes = figure.subplots(len(rates), 2, sharex=True, sharey=True, squeeze=False)
    panels = itertools.product(rates, ("init", "mid"))
    for axis, (rate, regime) in zip(axes.flat, panels, strict=True):
        points: dict[str, dict[int, list[float]]] = {}
        for result in (r for r in results if (r["rate"], r["regime"]) == (rate, regime)):
            for name, m in result["methods"].items():
                points.setdefault(name, {}).setdefault(result["n"], []).append(m["ms"])
        for name, at in points.items():
            ms = [statistics.median(all_ms) for all_ms in at.values()]
            axis.loglog(list(at), ms, "o-", label=name, markersize=4)
        axis.set_title(f"{regime}, P/N = {rate:g}", fontsize="medium")
    figure.supxlabel("number of scores N")
    figure.supylabel("forward + backward [ms]")
    # Panels may lack methods but keep their order: the fullest panel names all methods.
    handles = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda h: len(h[1]))
    figure.legend(*handles, loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=120)


def summary(results: list[dict]) -> str:
    """Returns a table of times in multiples of focal loss's; each cell has a number for every C."""
    counts = sorted({r["c"] for r in results})
    rows: dict[tuple, dict[str, str]] = {}
    for result in results:
        key = f"{result['n']:.0e}", result["rate"], result["regime"]
        row = rows.setdefault(key, dict(zip(("N", "P/N", "scores"), key, strict=True)))
        methods = result["methods"]
        found = {
            name: f"{methods[name]['to_focal']:.2f}" if name in methods else "-"
            for name in SUMMARIZED
        }
        peak = methods["RamboLoss"]["peak_mib"] / methods["focal"]["peak_mib"]
        for name, text in {**found, "memory": f"{peak:.2f}"}.items():
            row[name] = f"{row[name]} / {text}" if name in row else text
    table = tabulate(rows.values(), headers="keys", tablefmt="github", disable_numparse=True)
    return f"times focal loss's, for C = {' / '.join(map(str, counts))}\n\n{table}"


def check_device(device: str) -> None:
    """Raises InputError unless torch can use this device."""
    try:
        torch.zeros(1, device=device)
        if torch.device(device).index is not None:
            torch.cuda.set_device(device)  # waits and peak memory are those of the current device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        reason = one_line(error).split(". ")[0]
        raise InputError(f"--device {device}: {reason}: use cpu or cuda") from None


def run(argv: list[str] | None = None) -> None:
    """Times all cases; InputError if the device or the output cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/benchmark_loss"), metavar="FOLDER")
    add("--quick", action="store_true", help="about a minute, up to N = 1e6")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--sizes", type=float, nargs="+", help="numbers of scores N, e.g. 1e5 1e6")
    add("--seconds", type=float, help="seconds per case (default: 3; with --quick: 1)")
    args = parser.parse_args(argv)
    check_device(args.device)
    make_folder(args.output, "--output")
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = args.sizes or ([1e4, 1e5, 1e6] if args.quick else [1e4, 1e5, 1e6, 1e7])
    if args.device != "cpu" and not args.sizes and not args.quick:
        sizes.append(1e8)
    seconds, limit = (1.0, 1e7) if args.quick else (3.0, 1e8)
    seconds = seconds if args.seconds is None else args.seconds
    results = []
    classes = (80,) if args.quick else (1, 80, 1203)
    for n, c, rate, regime in itertools.product(sizes, classes, (5e-5, 5e-3), ("init", "mid")):
        case = {"n": int(n), "c": c, "rate": rate, "regime": regime}
        results.append(measure(case, args.device, seconds, limit))
        print_result(results[-1])
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": args.device}
    about["backend"] = backend_of(args.device)
    text = json.dumps({"about": about, "results": results}, indent=1)
    (args.output / "benchmark.json").write_text(text)
    plot(results, args.output / "benchmark.png")
    print(f"\n{summary(results)}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after a user's mistake."""
    return exit_status(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
