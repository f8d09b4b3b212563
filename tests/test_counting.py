"""The counting passes of every backend against those in plain PyTorch, which are held against the
definition."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rambo_det.core import RamboLoss, lists, memory
from rambo_det.core import batch as batch_module
from rambo_det.core.counting import Thresholds, plain
from rambo_det.core.counting.build import _COMPILERS
from rambo_det.core.counting.native import native_counting
from rambo_det.core.keys import make_keys

from .test_against_oracle import VALUES, batches, margins, steps


@st.composite
def cases(draw, max_rows, columns=(1, 2, 5, 70)):
    """Scores, some of them strided, classes, two sets of thresholds and all that write() takes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, c = draw(st.integers(0, max_rows)), draw(st.sampled_from(columns))
    values = VALUES[draw(st.sampled_from(sorted(VALUES)))]
    scores = torch.tensor(values(rng, (n, c)), dtype=torch.float32)
    layout = draw(st.sampled_from(["rows", "columns", "gaps"]))
    if layout == "columns":
        scores = scores.t().contiguous().t()
    elif layout == "gaps":
        scores = torch.stack([scores, scores + 1], 2)[:, :, 0]
    gt = torch.tensor(rng.integers(-1, c + 1, n))
    sizes = [0, 1, 3, 40]
    num = [int(rng.choice(sizes)) * draw(st.booleans()) for _ in range(c + 1)]
    before = thresholds(rng, values, num)
    # No floor is higher before than after.
    shift = torch.tensor(rng.exponential(1.0, len(before.at)) ** 4, dtype=torch.float32)
    at = torch.cat([s.sort().values for s in (before.at + shift).split(num)] or [before.at])
    after = Thresholds(at, before.bounds, before.through)
    divisor = torch.tensor(rng.lognormal(0, 5, c + 1))
    return scores, gt, before, after, divisor, torch.tensor(rng.random(c + 1))


def thresholds(rng, values, num):
    """Of ``num[g]`` thresholds in group g, half of the time with weights."""
    parts = [np.sort(values(rng, (k, 1))[:, 0]).astype(np.float32) for k in num]
    bounds = torch.tensor(np.cumsum([0, *num]))
    sums = [np.concatenate([[0], rng.random(k).cumsum()]) for k in num]
    through = torch.tensor(np.concatenate(sums)) if rng.random() < 0.5 else None
    return Thresholds(torch.tensor(np.concatenate(parts)), bounds, through)


def by_definition(scores, gt, before, after, divisor, weight):
    """The counts at ``after`` and the gradient, score by score, in float64."""
    c = scores.shape[1]
    above, grad = np.zeros(len(after.at), dtype=np.int64), np.zeros(scores.shape)
    for (n, j), b in np.ndenumerate(scores.numpy()):
        if gt[n] < 0 or gt[n] == j:
            continue
        for g in (j, c):
            first, last = after.bounds[g : g + 2].tolist()
            above[first:last] += b >= after.at[first:last].numpy()
            sums = []
            for t in (before, after):
                below = int((t.at[first:last] <= b).sum())
                sums.append(below if t.through is None else t.through[first + g + below].item())
            grad[n, j] += (sums[0] - sums[1]) / divisor[g].item() * weight[g].item()
    return above, grad


BACKENDS = {"plain": lambda: plain, "native": native_counting}


@pytest.fixture(params=list(BACKENDS), scope="module")
def backend(request):
    found = BACKENDS[request.param]()
    if found is None:
        pytest.skip("there is no C++ compiler here")
    return found


@settings(max_examples=40, deadline=None)
@given(case=cases(12, (1, 2, 5)))
def test_counts_and_gradients_are_those_of_the_definition(backend, case):
    scores, gt, before, after, *step = case
    want, grad = by_definition(*case)
    high = float(scores.max()) if scores.numel() else 0.0
    np.testing.assert_array_equal(backend.count(scores, gt, high, after).numpy(), want)
    got, above = backend.write(scores, gt, high, before, after, *step, torch.float64)
    np.testing.assert_array_equal(above.numpy(), want)
    np.testing.assert_array_equal(got.numpy(), grad)
    single, _ = backend.write(scores, gt, high, before, after, *step, torch.float32)
    np.testing.assert_array_equal(single.numpy(), grad.astype(np.float32))


@pytest.mark.parametrize("threads", [1, 3])
@settings(max_examples=40, deadline=None)
@given(case=cases(1500))
def test_native_is_plain(threads, case):
    """Sizes at which there are several threads and cells with many thresholds."""
    native = native_counting()
    if native is None:
        pytest.skip("there is no C++ compiler here")
    scores, gt, before, after, *step = case
    high = float(scores.max()) if scores.numel() else 0.0
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dtype in (torch.float32, torch.float64):
            got, above = native.write(scores, gt, high, before, after, *step, dtype)
            want, want_above = plain.write(scores, gt, high, before, after, *step, dtype)
            assert torch.equal(got, want) and torch.equal(above, want_above)
        assert torch.equal(
            native.count(scores, gt, high, before), plain.count(scores, gt, high, before)
        )
        values = scores.t().reshape(-1)
        groups = torch.arange(len(values), dtype=torch.int32) % (scores.shape[1] + 1)
        assert torch.equal(
            native.count_listed(values, groups, after), plain.count_listed(values, groups, after)
        )
        for got, want in zip(native.find(scores, gt), plain.find(scores, gt), strict=True):
            assert torch.equal(got, want)
        keys = after.at.double().flip(0)
        assert torch.equal(native.argsort(keys, after.bounds), plain.argsort(keys, after.bounds))
        for above in (before, None):
            base = torch.zeros(scores.shape[1]) if above is None else above.base()
            for size in (0, 5, len(gt), 1 << 20):
                heights = []
                for found in (native, plain):
                    kept, columns = found.highest(scores, gt, above, size)
                    heights.append((kept - base[columns]).sort().values)
                assert torch.equal(*heights)
    finally:
        torch.set_num_threads(before_threads)


@pytest.mark.parametrize("digits", [0, 9])
@pytest.mark.parametrize("number", [127, 128, 5000])
def test_native_sorts_many_as_plain_does(number, digits):
    """From 128 on it does so byte by byte; with few digits there are ties."""
    native = native_counting()
    if native is None:
        pytest.skip("there is no C++ compiler here")
    g = torch.Generator().manual_seed(number)
    scores = (30 * torch.randn(number, generator=g)).round(decimals=digits)
    keys = make_keys(torch.randint(3, (number,), generator=g), scores)
    ranked = native.rank(keys, 3, 0.3)
    for got, want in zip(ranked, plain.rank(keys, 3, 0.3), strict=True):
        assert torch.equal(got, want)
    slope = torch.rand(number, generator=g).double().round(decimals=digits)
    lambda_ = torch.tensor([1.0, 30.0, 1e9], dtype=torch.float64)
    moved, want = (way.move(ranked, lambda_, slope) for way in (native, plain))
    assert torch.equal(moved[0], want[0]) and torch.equal(moved[1], want[1])
    falling, bounds = -slope, ranked.bounds
    assert torch.equal(native.argsort(falling, bounds), plain.argsort(falling, bounds))


@pytest.mark.parametrize("few", [4, 8, 16, 32])
def test_the_highest_are_found_whatever_the_sample_says(few):
    """Scores that are high where native.cpp looks for its guess, in runs of so many, and nowhere
    else: above the guess there are fewer than are wanted."""
    native = native_counting()
    if native is None:
        pytest.skip("there is no C++ compiler here")
    size, number = 1000, 200_000
    scores = torch.randn(number, 1, generator=torch.Generator().manual_seed(few))
    scores[:: few * size // 40] += 10
    gt = torch.ones(number, dtype=torch.int64)
    found, want = (way.highest(scores, gt, None, size)[0] for way in (native, plain))
    assert torch.equal(found.sort().values, want.sort().values)


@settings(max_examples=150, deadline=None)
@given(batches(60), batches(30), margins, steps, st.sampled_from([0.0, 0.3, 1.0]))
def test_every_way_to_the_loss_is_the_same(batch, earlier, margin, step, beta):
    """One call of C++, several, plain PyTorch: losses, gradients, what is remembered."""
    scores, gt = batch
    c = scores.shape[1]
    found = []
    for way in ("fused", "native", "plain"):
        with pytest.MonkeyPatch.context() as patch:
            if way != "fused":
                patch.setattr(lists, "_fusible", lambda how: None)
            if way == "plain":
                for module in (lists, memory, batch_module):
                    patch.setattr(module, "counting_for", lambda device: plain)
            # Room for all negatives: which of several tied ones are left out is not said.
            loss = RamboLoss(c, margin=margin, beta=beta, memory_length=2, memory_size=512, **step)
            # As many columns; a class that is none of them is background.
            loss(earlier[0].repeat(1, c)[:, :c].requires_grad_(), earlier[1].clamp(max=c))
            leaf = scores.double().requires_grad_()
            value = loss(leaf, gt)
            value.backward()
            stats = [loss.stats.class_ap, loss.stats.zero_gradient, loss.stats.starved]
            kept = loss.memory.scores.sort().values
            found.append([value.detach(), leaf.grad, *stats, kept, loss.memory.positives])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            # Sums of losses may be rounded otherwise and, where the step divides by AP, the
            # gradient with them.
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12, equal_nan=True)


def test_without_a_compiler_the_plain_passes_take_over(tmp_path):
    """One line in the log, the same loss; RAMBO_DET_NATIVE=0 takes them without a word."""
    script = (
        "import torch, rambo_det.core.counting.native as native\n"
        "from rambo_det.core import RamboLoss\n"
        "g = torch.Generator().manual_seed(0)\n"
        "s = torch.randn(50, 3, generator=g).requires_grad_()\n"
        "loss = RamboLoss(3)(s, torch.arange(50) % 4)\n"
        "loss.backward()\n"
        "print(loss.item(), s.grad.sum(0).tolist())"
    )
    said = {}
    for name, env in {
        "native": {},
        "none": {"CXX": str(tmp_path / "no-such-compiler"), "PYTHONPYCACHEPREFIX": str(tmp_path)},
        "asked": {"RAMBO_DET_NATIVE": "0"},
    }.items():
        said[name] = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={**os.environ, **env},
        )  # fmt: skip
    assert said["none"].stdout == said["asked"].stdout == said["native"].stdout
    assert "no-such-compiler" in said["none"].stderr and not said["asked"].stderr
    assert len(said["none"].stderr.splitlines()) == 1


def test_minus_zero_ties_with_zero():
    scores = torch.tensor([[-0.0], [0.0]])
    for way in filter(None, (plain, native_counting())):
        keys = way.find(scores, torch.tensor([0, 0]))[2]
        assert keys[0] == keys[1]


@pytest.mark.parametrize("columns", [127, 129, 300])
def test_the_highest_of_more_columns_than_a_block(columns):
    generator = torch.Generator().manual_seed(columns)
    scores = torch.randn(40, columns, generator=generator)
    gt_classes = torch.randint(-1, columns + 1, (40,), generator=generator)
    found = []
    for way in filter(None, (plain, native_counting())):
        kept, lists = way.highest(scores, gt_classes, None, 50)
        found.append(sorted(zip(kept.tolist(), lists.tolist(), strict=True)))
    assert found[0] == found[-1]


@pytest.mark.skipif(not any(map(shutil.which, _COMPILERS)), reason="there is no C++ compiler here")
def test_the_cpp_compiles_and_loads(monkeypatch):
    """Without it all else is tried with the plain passes, and passes."""
    monkeypatch.delenv("RAMBO_DET_NATIVE", raising=False)
    assert native_counting.__wrapped__() is not None
