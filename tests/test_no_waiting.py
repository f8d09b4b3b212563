"""On a GPU nothing but the number of positives is waited for, and nothing leaves the device."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import rambo_det.losses
from rambo_det.losses import RamboLoss, ScoreMemory, ranking
from rambo_det.losses.binning import reference
from rambo_det.losses.distributed import Processes
from rambo_det.losses.inputs import RankingInputs, prepare_inputs
from rambo_det.losses.ranking import rank
from rambo_det.losses.sort_keys import EMPTY_KEY

from .strategies import batch, spec

RULES = [{}, {"lambda_": 300.0}, {"each": True}]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("thresholds", [0, 3])
@pytest.mark.parametrize("memory_length", [0, 2])
def test_no_step_of_a_ranking_depends_on_data_that_is_on_a_gpu(
    rule, thresholds, memory_length, monkeypatch
):
    """With tensors that have a device and a shape, but no data: to read them is an error, and so is
    to mix devices."""
    monkeypatch.setattr(ranking, "bin_negatives", reference.bin_negatives)
    with FakeTensorMode(), torch.device("cuda"):
        rows, columns = torch.empty(2, 7, dtype=torch.int64).unbind()
        inputs = RankingInputs(
            torch.empty(50, 4), torch.empty(50, dtype=torch.int64), 1.0, torch.float32, rows,
            columns, torch.empty(7, dtype=torch.int64), 0, True,
        )  # fmt: skip
        memory = ScoreMemory(memory_length, 16, 4, thresholds)
        memory.written = torch.zeros((), dtype=torch.int64, device="cpu")
        alone = Processes(together=False)
        how = spec(True, 0.5, **rule, num_iou_thresholds=thresholds)
        contents = None
        if memory_length:
            keys = memory.positives.flatten(), memory.negatives.flatten()
            assert all(key.is_cuda for key in keys)
            contents = memory.contents()
        result = rank(inputs, how, alone, contents)
        assert result.grad.is_cuda and result.loss.is_cuda and result.num_above.is_cuda


class Recorder(TorchDispatchMode):
    """The operations that read a tensor's data on the host, or bring it to another device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name()
        moved = name == "aten::_to_copy" and result.device != args[0].device
        if moved or name == "aten::_local_scalar_dense":
            self.found.append(name)
        return result


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_ranking_reads_no_number(rule):
    scores, gt = batch()
    alone = Processes(together=False)
    inputs = prepare_inputs(scores, gt, alone)
    with Recorder() as recorder:
        rank(inputs, spec(True, 0.5, **rule), alone)
    assert not recorder.found
    with Recorder() as recorder:
        scores.sum().item()
    assert recorder.found  # it does see what it is to see


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_gpu_is_not_waited_for(rule):
    loss = RamboLoss(4, memory_length=2, **rule).cuda()
    scores, gt = (x.cuda() for x in batch())
    alone = Processes(together=False)
    for _ in range(3):  # the first compiles
        inputs = prepare_inputs(scores, gt, alone)
        torch.cuda.set_sync_debug_mode("error" if _ else "default")
        try:
            result = rank(inputs, spec(True, 0.5, **rule), alone, loss.memory.contents())
            loss.memory.write(inputs, result.lists.lowest()[:-1])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert (loss.memory.negatives != EMPTY_KEY).any()


MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(rambo_det.losses.__path__, "rambo_det.losses.")
    if not module.name.endswith("triton_kernel")
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_of_the_docstrings_are_right(module):
    scope = {**vars(rambo_det.losses), "torch": torch}
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder(recurse=True)
    for test in finder.find(module, globs={**vars(module), **scope}):
        runner.run(test)
    assert runner.failures == 0


def test_every_public_function_has_an_example_or_points_to_one():
    for name in rambo_det.losses.__all__:
        if inspect.isfunction(getattr(rambo_det.losses, name)) or name == "RamboLoss":
            assert ">>>" in getattr(rambo_det.losses, name).__doc__ or name == "interclass_ap_loss"
