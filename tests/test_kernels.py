"""The Triton kernels against the plain passes: on a GPU, else in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rambo_det.core import RamboLoss, counting, lists, memory
from rambo_det.core import batch as batch_module
from rambo_det.core.counting import DeviceCounting, native_counting, plain
from rambo_det.errors import InputError

from .test_against_oracle import batches, margins, steps
from .test_counting import by_definition, cases

pytest.importorskip("triton")

from rambo_det.core.counting import kernels

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def strided(scores):
    """On the device, laid out as it was: moving makes what has gaps dense."""
    if not ON_GPU or scores.is_contiguous() or scores.t().is_contiguous():
        return scores.to(DEVICE)
    return torch.stack([scores, scores + 1], 2).to(DEVICE)[:, :, 0]


@settings(max_examples=15, deadline=None)
@given(case=cases(12, (1, 2, 5)))
def test_counts_and_gradients_are_those_of_the_definition(case):
    scores, gt, before, after, *step = case
    want, grad = by_definition(*case)
    given_ = strided(scores), gt.to(DEVICE), 0.0
    np.testing.assert_array_equal(kernels.count(*given_, after).cpu().numpy(), want)
    for dtype in (torch.float64, torch.float32):
        got, above = kernels.write(*given_, before, after, *step, dtype)
        np.testing.assert_array_equal(above.cpu().numpy(), want)
        np.testing.assert_array_equal(got.cpu().numpy(), torch.tensor(grad).to(dtype).numpy())


@settings(max_examples=15, deadline=None)
@given(case=cases(1500, (1, 3, 20, 70)), sorted_=st.sampled_from([0, 1 << 22]))
def test_kernels_are_plain(case, sorted_):
    """Several blocks of rows and of columns, scores that are guessed about and sorted."""
    scores, gt, before, after, *step = case
    given_ = strided(scores), gt.to(DEVICE), 0.0
    with pytest.MonkeyPatch.context() as patch:
        # A program takes several blocks of rows, and the bins have few copies.
        patch.setattr(kernels, "_PROGRAMS", 3)
        patch.setattr(kernels, "_PLACES", 100)
        got, above = kernels.write(*given_, before, after, *step, torch.float32)
        found = kernels.count(*given_, before).cpu()
    want, want_above = plain.write(scores, gt, 0.0, before, after, *step, torch.float32)
    assert torch.equal(got.cpu(), want) and torch.equal(above.cpu(), want_above)
    assert torch.equal(found, plain.count(scores, gt, 0.0, before))
    values = scores.t().reshape(-1)
    groups = torch.arange(len(values), dtype=torch.int32) % (scores.shape[1] + 1)
    found = kernels.count_listed(values.to(DEVICE), groups.to(DEVICE), after).cpu()
    assert torch.equal(found, plain.count_listed(values, groups, after))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_SORTED", sorted_)
        patch.setattr(kernels, "_SAMPLE", 64)
        patch.setattr(kernels, "_PROGRAMS", 3)
        for limits in (before, None):
            base = torch.zeros(scores.shape[1]) if limits is None else limits.base()
            for size in (0, 5, len(gt), 1 << 16):
                heights = []
                for way, device in ((kernels, DEVICE), (plain, "cpu")):
                    kept, columns = way.highest(scores.to(device), gt.to(device), limits, size)
                    heights.append((kept.cpu() - base[columns.cpu()]).sort().values)
                assert torch.equal(*heights)


@settings(max_examples=15, deadline=None)
@given(batches(60), batches(30), margins, steps, st.sampled_from([(), (0.5, 0.75)]))
def test_the_loss_with_the_kernels_is_that_of_a_cpu(batch, earlier, margin, step, thresholds):
    scores, gt = batch
    c = scores.shape[1]
    found = []
    for way in ("kernels", "cpu"):
        with pytest.MonkeyPatch.context() as patch:
            if way == "kernels":
                for module in (lists, memory, batch_module):
                    counting = DeviceCounting(kernels, native_counting() or plain)
                    patch.setattr(module, "counting_for", lambda device, c=counting: c)
            device = DEVICE if way == "kernels" else "cpu"
            # Room for all negatives: which of several tied ones are left out is not said.
            loss = RamboLoss(
                c, margin=margin, memory_length=2, memory_size=512, iou_thresholds=thresholds,
                **step,
            ).to(device)  # fmt: skip
            for part, classes in (earlier, batch):
                part = part.repeat(1, c)[:, :c].double().to(device, copy=True).requires_grad_()
                ious = torch.arange(len(part), device=device) % 3 / 2 if thresholds else None
                value = loss(part, classes.clamp(max=c).to(device), ious)
            value.backward()
            kept = loss.memory.scores.sort().values
            found.append([value.detach(), part.grad, loss.stats.class_ap, kept])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got.cpu(), want.cpu(), rtol=1e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("sample", [1, 100, 1 << 20])
def test_the_guess_holds_for_scores_like_any(sample, monkeypatch):
    """Else all scores would be sorted each time, however large the part that is looked at."""
    monkeypatch.setattr(kernels, "_SAMPLE", sample)
    scores = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    gt = torch.full((20_000,), 3, device=DEVICE)
    for size in (200, 3000):
        places = kernels._above_guess(scores, gt, scores.new_zeros(3), size)
        assert size <= len(places)
        highest = scores.flatten().topk(len(places)).indices.sort().values
        assert torch.equal(places, highest)


def test_the_kernels_are_tried_out_before_they_are_used(monkeypatch, caplog):
    """They run and give what the plain passes give, or these take over with one line."""
    kernels.try_out(torch.device(DEVICE))
    passes = counting._passes.__wrapped__
    gpu = torch.device("cuda")
    monkeypatch.setattr(kernels, "try_out", lambda device: None)
    assert passes(gpu) is kernels
    monkeypatch.setattr(kernels, "try_out", lambda device: 1 / 0)
    assert passes(gpu) is plain
    (said,) = caplog.messages
    assert "Triton" in said and "ZeroDivisionError" in said
    monkeypatch.setenv("RAMBO_DET_TRITON", "0")
    assert passes(gpu) is plain and len(caplog.messages) == 1


@pytest.mark.parametrize("wrong", ["count", "write", "count_listed", "_above_guess"])
def test_kernels_that_give_wrong_numbers_are_not_used(wrong, monkeypatch):
    right = getattr(kernels, wrong)

    def one_more(*args):
        got = right(*args)
        return (got[0], got[1] + 1) if wrong == "write" else got + 1

    monkeypatch.setattr(kernels, wrong, one_more)
    with pytest.raises(RuntimeError, match="they "):
        kernels.try_out(torch.device(DEVICE))


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.75)])
def test_what_is_of_positives_stays_on_the_cpu(thresholds, monkeypatch):
    """Whatever torch's default device is: "meta" is one whose memory C++ cannot write."""
    host = native_counting() or plain
    for module in (lists, memory, batch_module):
        monkeypatch.setattr(module, "counting_for", lambda device: DeviceCounting(plain, host))
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 3, generator=g).requires_grad_()
    gt = torch.randint(4, (40,), generator=g)
    ious = torch.rand(40, generator=g) if thresholds else None
    loss = RamboLoss(3, memory_length=2, memory_size=16, iou_thresholds=thresholds)
    want = [loss(scores, gt, ious).item() for _ in range(2)]
    loss = RamboLoss(3, memory_length=2, memory_size=16, iou_thresholds=thresholds)
    with torch.device("meta"):
        assert [loss(scores, gt, ious).item() for _ in range(2)] == want


def test_a_memory_elsewhere_than_the_scores_is_one_line():
    loss = RamboLoss(3, memory_length=2).to("meta")
    with pytest.raises(InputError, match=r"scores are on cpu, the memory of RamboLoss on meta"):
        loss(torch.zeros(4, 3), torch.zeros(4).long())


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rambo_det.core.counting import kernels

POINTERS = {"scores": "fp32", "gt_classes": "i64", "at": "fp32", "after_at": "fp32",
    "bounds": "i64", "before": "fp64", "after": "fp64", "factors": "fp64", "grad": "fp32",
    "bins": "i64", "values": "fp32", "groups": "i32", "base": "fp32", "cut": "fp32",
    "counter": "i64", "places": "i32"}
CHOSEN = {"COPIES": 64, "ROWS": 16, "COLUMNS": 16, "BLOCK": 256, "column_stride": 1}
for weighted in (False, True):
    for name in ("count", "write", "listed", "highest"):
        kernel = getattr(kernels, f"_{name}_kernel")
        signature, constants = {}, {}
        for place, argument in enumerate(kernel.arg_names):
            chosen = {**CHOSEN, "WEIGHTED": weighted}
            if argument in chosen:
                signature[argument], constants[(place,)] = "constexpr", chosen[argument]
            else:
                pointed = POINTERS.get(argument)
                signature[argument] = f"*{pointed}" if pointed else "i32"
        source = ASTSource(kernel, signature, constants, {})
        triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
print("compiled")
"""


def test_the_kernels_compile_for_a_gpu_where_there_is_none(tmp_path):
    """The interpreter is less strict: it does not mind, say, a variable that changes its type."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True,
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)}, cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    assert done.stdout == "compiled\n", done.stderr[-2000:]
