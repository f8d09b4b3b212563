"""The loss on a GPU, with Triton's kernel and in plain PyTorch, equals the oracle and a CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rambo_det.losses import RamboLoss, binning

from .forked import python
from .strategies import batches, margins, steps
from .test_against_oracle import check_class_lists

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(params=["1", "0"], ids=["Triton", "reference"], scope="module", autouse=True)
def backend(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAMBO_DET_TRITON", request.param)
        binning._backend.cache_clear()
        made = binning._backend(torch.zeros(0, device="cuda").device)
        wanted = {"1": "triton_kernel", "0": "reference"}[request.param]
        assert made.__name__.endswith(wanted), "the kernel does not run, see the warning"
        yield
    binning._backend.cache_clear()


@settings(max_examples=100, deadline=None)
@given(batches(), margins, steps)
def test_class_lists_equal_the_oracle(batch, margin, step):
    check_class_lists(batch, margin, step, "cuda")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 3]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_a_gpu_gives_what_a_cpu_gives(seed, memory_length, dtype):
    """Loss, gradient and memory agree. With float32, the memory drops some of the negatives."""
    rng = torch.Generator().manual_seed(seed)
    # Half-precision scores tie, and the memory may drop any tied scores. It has room for all.
    size = 40 if dtype == torch.float32 else 160
    losses = [RamboLoss(3, memory_length=memory_length, memory_size=size) for _ in range(2)]
    losses[1].cuda()
    for _ in range(5):
        scores = torch.randn(50, 3, generator=rng).to(dtype)
        gt = torch.randint(-1, 8, (50,), generator=rng).clamp(max=3)
        found = []
        for loss, device in zip(losses, ("cpu", "cuda"), strict=True):
            leaf = scores.to(device, copy=True).requires_grad_()
            value = loss(leaf, gt.to(device))
            value.backward()
            assert leaf.grad.dtype == dtype
            found.append((value.item(), leaf.grad.float().cpu().numpy()))
        (value, grad), (other, other_grad) = found
        assert other == pytest.approx(value, rel=1e-6, abs=1e-7)
        np.testing.assert_allclose(other_grad, grad, rtol=1e-2 if dtype != torch.float32 else 1e-5)
    if memory_length:
        ours, theirs = (loss.memory for loss in losses)
        assert theirs.negatives.is_cuda and theirs.positives.is_cuda
        assert torch.equal(ours.negatives.sort().values, theirs.negatives.cpu().sort().values)
        assert torch.equal(ours.positives, theirs.positives.cpu())


@pytest.mark.parametrize("model", ["faster_rcnn", "retinanet"])
def test_a_training_in_half_precision_goes_on_where_it_was(tmp_path, model):
    pytest.importorskip("detectron2")
    from .command_line import own_data

    data, keys = own_data(tmp_path, "own", 8, 3)
    words = ["--config", f"configs/quickstart/{model}_rambo.yaml", *data, *keys]
    words += ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True", "SEED", "3"]
    words += ["OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_ITER"]
    for flags, iterations in (([], 3), (["--resume"], 6)):
        command = ["-m", "rambo_det.cli.train", *flags, *words, iterations]
        done = python(*command, RAMBO_DET_CACHE=str(tmp_path))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "Device: cuda" in done.stdout
    assert (tmp_path / "out" / "model_final.pth").is_file()
