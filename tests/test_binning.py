"""bin_negatives: the reference equals the definition, the other backends equal the reference."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rambo_det.losses import binning
from rambo_det.losses.binning import cpu, reference
from rambo_det.losses.sort_keys import EMPTY_KEY, key_scores, key_segments, make_keys

from .forked import python
from .strategies import VALUES

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@st.composite
def cases(draw, max_rows, columns=(0, 1, 2, 5, 70, 129)):
    """Draws scores (some of them strided), classes, sorted keys of edges, and a value per edge."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, c = draw(st.integers(0, max_rows)), draw(st.sampled_from(columns))
    values = VALUES[draw(st.sampled_from(sorted(VALUES)))]
    scores = torch.tensor(values(rng, (n, c)), dtype=torch.float32)
    layout = draw(st.sampled_from(["rows", "columns", "gaps"]))
    if layout == "columns":
        scores = scores.t().contiguous().t()
    elif layout == "gaps":
        scores = torch.stack([scores, scores + 1], 2)[:, :, 0]
    number = draw(st.sampled_from([0, 1, 3, 40, 400]))
    # Segments 0 to c, and c + 1, to which no score belongs. Some segments have no edge.
    segments = torch.tensor(rng.choice(rng.integers(0, c + 2, 5), number), dtype=torch.int64)
    edges = torch.tensor(values(rng, (number,)), dtype=torch.float32)
    keys = make_keys(segments, edges).sort().values
    gt = torch.tensor(rng.integers(-1, c + 1, n))
    return scores, gt, keys, torch.tensor(rng.normal(size=number))


def by_definition(scores, gt, edges, values):
    """Returns the counts and the gradient, computed score by score in float64."""
    c, at, segments = scores.shape[1], key_scores(edges).numpy(), key_segments(edges).numpy()
    counts, grad = np.zeros(len(at), dtype=np.int64), np.zeros(scores.shape)
    for (n, j), b in np.ndenumerate(scores.numpy()):
        if gt[n] < 0 or gt[n] == j:
            continue
        for g in (j, c):
            reached = np.flatnonzero((segments == g) & (b >= at))
            counts[reached] += 1
            if len(reached):
                grad[n, j] += values[reached[-1]].item()
    return counts, grad


@settings(max_examples=60, deadline=None)
@given(cases(12, (1, 2, 5)))
def test_the_reference_is_the_definition(case):
    counts, grad = by_definition(*case)
    for dtype, chunk in ((torch.float64, 1 << 22), (torch.float32, 8)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "_CHUNK", chunk)
            got, got_grad = reference.bin_negatives(*case, dtype)
        np.testing.assert_array_equal(got.numpy(), counts)
        np.testing.assert_array_equal(got_grad.numpy(), torch.tensor(grad).to(dtype).numpy())
    assert reference.bin_negatives(*case[:3])[1] is None


def triton_kernel(patch):
    pytest.importorskip("triton")
    from rambo_det.losses.binning import triton_kernel

    # Now a program processes several blocks of rows, and the bins have few copies.
    patch.setattr(triton_kernel, "_MAX_PROGRAMS", 3)
    patch.setattr(triton_kernel, "_MAX_BINS", 100)
    return triton_kernel, DEVICE


def compiled(patch):
    if cpu.library() is None:
        pytest.skip("there is no C++ compiler here")
    patch.setattr(torch, "get_num_threads", lambda: 3)
    return cpu, "cpu"


@pytest.mark.parametrize("backend, examples", [(compiled, 200), (triton_kernel, 15)])
def test_a_backend_is_the_reference(backend, examples):
    # Triton's interpreter truncates to bfloat16 instead of rounding.
    dtypes = DTYPES if ON_GPU or backend is compiled else DTYPES[:3]

    @settings(max_examples=examples, deadline=None)
    @given(cases(1500), st.sampled_from(dtypes), st.sampled_from(DTYPES[1:]), st.booleans())
    def check(case, dtype, of_scores, with_values):
        scores, gt, edges, values = case
        scores, values = scores.to(of_scores), values if with_values else None
        want = reference.bin_negatives(scores, gt, edges, values, dtype)
        high = float(scores.max()) if scores.numel() else 0.0
        with pytest.MonkeyPatch.context() as patch:
            module, device = backend(patch)
            there = [x if x is None else x.to(device) for x in (scores, gt, edges, values)]
            for max_score in (high, float("inf")):
                got = module.bin_negatives(*there, dtype, max_score)
                for a, b in zip(got, want, strict=True):
                    assert (a is None and b is None) or torch.equal(a.cpu(), b)

    check()


@pytest.mark.parametrize("backend", [compiled, triton_kernel])
def test_an_infinite_score_is_above_no_edge_where_there_is_none(backend):
    """A half-precision score that overflows is infinite, and its class may have no positive."""
    scores, gt = torch.full((300, 3), float("inf")), torch.full((300,), 3)
    edges = make_keys(torch.tensor([1]), torch.zeros(1))
    want = reference.bin_negatives(scores, gt, edges, torch.ones(1))
    with pytest.MonkeyPatch.context() as patch:
        module, device = backend(patch)
        there = [x.to(device) for x in (scores, gt, edges, torch.ones(1).double())]
        got = module.bin_negatives(*there)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.cpu(), b)


def test_minus_zero_ties_with_zero():
    keys = make_keys(torch.tensor([3, 3]), torch.tensor([-0.0, 0.0]))
    assert keys[0] == keys[1] < EMPTY_KEY


def test_without_a_compiler_the_reference_takes_over(tmp_path, capsys):
    """It logs one line and gives the same loss. With RAMBO_DET_NATIVE=0 it logs nothing."""
    script = (
        "import torch\n"
        "from rambo_det.losses import RamboLoss\n"
        "g = torch.Generator().manual_seed(0)\n"
        "s = torch.randn(50, 3, generator=g).requires_grad_()\n"
        "loss = RamboLoss(3)(s, torch.arange(50) % 4)\n"
        "loss.backward()\n"
        "print(loss.item(), s.grad.sum(0).tolist())"
    )
    exec(script, {})
    native = capsys.readouterr().out
    none = python("-c", script, CXX=str(tmp_path / "no-such-compiler"))
    asked = python("-c", script, RAMBO_DET_NATIVE="0")
    assert native == none.stdout == asked.stdout
    assert "no-such-compiler" in none.stderr and not asked.stderr
    assert len(none.stderr.splitlines()) == 1


@pytest.mark.skipif(
    not any(map(shutil.which, cpu._COMPILERS)), reason="there is no C++ compiler here"
)
def test_the_cpp_compiles_and_loads(monkeypatch, tmp_path):
    """Otherwise the other tests would pass with the reference, unnoticed."""
    monkeypatch.delenv("RAMBO_DET_NATIVE", raising=False)
    monkeypatch.setenv("RAMBO_DET_CACHE", str(tmp_path))
    assert cpu.library.__wrapped__() is not None
    (library,) = tmp_path.iterdir()  # one file, and no temporary file beside it
    assert library.suffix == ".so"


def test_the_kernel_is_tried_out_before_it_is_used(monkeypatch, caplog):
    """If the kernel does not equal the reference, the reference takes over with one log line."""
    kernel, device = triton_kernel(monkeypatch)
    binning._self_test(kernel, torch.device(device))
    backend, gpu = binning._backend.__wrapped__, torch.device("cuda")
    with monkeypatch.context() as patch:
        patch.setattr(binning, "_self_test", lambda module, device: None)
        assert backend(gpu) is kernel
    right = kernel.bin_negatives
    for part in (0, 1):  # the counts, the gradient

        def wrong(*args, part=part):
            got = list(right(*args))
            got[part] = got[part] if got[part] is None else got[part] + 1
            return got

        monkeypatch.setattr(kernel, "bin_negatives", wrong)
        with pytest.raises(RuntimeError, match="the results of the backend differ"):
            binning._self_test(kernel, torch.device(device))
    monkeypatch.setattr(binning, "_self_test", lambda module, device: 1 / 0)
    assert backend(gpu) is reference
    (said,) = caplog.messages
    assert "Triton" in said and "ZeroDivisionError" in said
    monkeypatch.setenv("RAMBO_DET_TRITON", "0")
    assert backend(gpu) is reference and len(caplog.messages) == 1


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rambo_det.losses.binning.triton_kernel import _bin_kernel

POINTERS = {"scores": "fp32", "gt_classes": "i64", "edges": "fp32", "offsets": "i64",
    "values": "fp64", "grad": "fp32", "bins": "i64"}
for write in (False, True):
    chosen = {"WRITE": write, "COPIES": 64, "ROWS": 16, "COLUMNS": 16, "column_stride": 1}
    signature, constants = {}, {}
    for place, argument in enumerate(_bin_kernel.arg_names):
        if argument in chosen:
            signature[argument], constants[(place,)] = "constexpr", chosen[argument]
        else:
            pointed = POINTERS.get(argument)
            signature[argument] = f"*{pointed}" if pointed else "i32"
    source = ASTSource(_bin_kernel, signature, constants, {})
    triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
print("compiled")
"""


def test_the_kernel_compiles_for_a_gpu_where_there_is_none(tmp_path):
    """The interpreter is less strict: for example, it accepts a variable that changes its type."""
    pytest.importorskip("triton", minversion="3.3", reason="before 3.3, ASTSource was another")
    done = python("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout == "compiled\n", done.stderr[-2000:]
