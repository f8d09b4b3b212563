"""On a GPU the loss reads only the number of positives, and no other tensor leaves the device."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rambo_det.losses import RamboLoss, binning
from rambo_det.losses.binning import reference
from rambo_det.losses.distributed import Processes
from rambo_det.losses.inputs import prepare_inputs
from rambo_det.losses.ranking import compute_ranking
from rambo_det.losses.sort_keys import EMPTY_KEY

from .strategies import batch, spec

RULES = [{}, {"lambda_": 300.0}]


class Recorder(TorchDispatchMode):
    """Records the operations with tensors of several devices, such as copies between devices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.found.append(function.name())
        return result


class Written(int):
    """Replaces the memory's count of batches, a CPU tensor that the loss may read."""

    def add_(self, number):
        pass


class NoKernel:
    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


def backend(name, patch):
    if name == "reference":
        return reference
    pytest.importorskip("triton")
    from rambo_det.losses.binning import triton_kernel

    patch.setattr(triton_kernel, "_bin_kernel", NoKernel())
    patch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    return triton_kernel


@pytest.mark.parametrize("name", ["reference", "Triton"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("memory_length", [0, 2])
@pytest.mark.parametrize("positives", [0, 7])
def test_a_gpu_is_waited_for_once(name, rule, memory_length, positives, monkeypatch):
    """Uses fake tensors, which have a device and a shape but no data. Reading a fake tensor fails.
    The loss may read only the header, which holds the number of positives, here a real tensor."""
    monkeypatch.setattr(binning, "bin_negatives", backend(name, monkeypatch).bin_negatives)
    headers = []

    def read(processes, header):
        assert header.is_cuda and header.shape == (4,)
        headers.append(header)
        return real_header

    real_header = torch.tensor([[float(positives), -1.0, 1.0, 4.0]], dtype=torch.float64)
    monkeypatch.setattr(Processes, "all_gather", read)
    loss = RamboLoss(4, memory_length=memory_length, memory_size=16, **rule)
    with FakeTensorMode(), Recorder() as recorder:
        for kept in ("positives", "negatives"):
            real = getattr(loss.memory, kept)
            setattr(loss.memory, kept, torch.empty(real.shape, dtype=real.dtype, device="cuda"))
        loss.memory.written = Written(3)
        scores = torch.empty(50, 4, device="cuda", requires_grad=True)
        gt = torch.empty(50, dtype=torch.int64, device="cuda")
        value = loss(scores, gt)
        assert value.is_cuda and loss.stats.class_ap.is_cuda and loss.stats.starved.is_cuda
        # Autograd cannot run backward on a missing device, so the test calls the node directly.
        node, scores = value.grad_fn, scores.detach()
        grad = node.gradient.write(scores, torch.ones_like(value), scores.dtype)
        assert grad.is_cuda and grad.shape == scores.shape
    assert len(headers) == 1 and not recorder.found


def test_the_recorder_sees_copies():
    with FakeTensorMode(), Recorder() as recorder:
        torch.tensor([1.0, 2.0], device="cuda")
    assert recorder.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_gpu_is_not_waited_for(rule):
    loss = RamboLoss(4, memory_length=2, **rule).cuda()
    scores, gt = (x.cuda() for x in batch())
    alone = Processes(together=False)
    for _ in range(3):  # the first iteration compiles
        inputs = prepare_inputs(scores, gt, alone)
        torch.cuda.set_sync_debug_mode("error" if _ else "default")
        try:
            result = compute_ranking(inputs, spec(True, 0.5, **rule), alone, loss.memory)
            loss.memory.write(inputs, result.lowest_thresholds[:-1])
            result.gradient.write(inputs.scores, scores.new_ones(()), scores.dtype)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert (loss.memory.negatives != EMPTY_KEY).any()
