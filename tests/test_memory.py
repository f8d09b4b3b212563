"""The score memory: when the loss writes it, what it keeps, and how it is saved."""

import io

import pytest
import torch

from rambo_det import RamboLoss
from rambo_det.losses import ScoreMemory
from rambo_det.losses.distributed import Processes
from rambo_det.losses.inputs import prepare_inputs
from rambo_det.losses.sort_keys import EMPTY_KEY, key_scores, key_segments

from .strategies import batch, same


def fill(loss, times=1):
    for seed in range(times):
        scores, gt = batch(seed=seed)
        loss(scores.requires_grad_(), gt)
    return loss


def state(loss):
    return {name: buffer.clone() for name, buffer in loss.memory.tensors().items()}


def test_written_only_in_training_with_gradients():
    loss = RamboLoss(4, memory_length=3)
    before = state(loss)
    with torch.no_grad():
        fill(loss)
    loss.eval()
    fill(loss)
    assert same(state(loss), before)
    loss.train()
    fill(loss)
    assert not same(state(loss), before)
    assert loss.memory.fill_fraction == pytest.approx(1 / 3)
    fill(loss, 5)
    assert loss.memory.fill_fraction == 1


def saved(loss):
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("length", [0, 3])
def test_made_without_memory_and_given_it_later(length):
    with torch.device("meta"):
        loss = RamboLoss(4, memory_length=length)
    assert same(state(loss.to_empty(device="cpu")), state(RamboLoss(4, memory_length=length)))


@pytest.mark.parametrize("length", [0, 3])
def test_saved_and_loaded_whole(length):
    """A memory in a deque, or in buffers that grow, would be lost on resume."""
    loss, other = fill(RamboLoss(4, memory_length=length), 2), RamboLoss(4, memory_length=length)
    entries = saved(loss)
    assert not entries  # the memory is saved in the metadata
    incompatible = other.load_state_dict(entries)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    assert same(state(other), state(loss))
    assert other.memory.fill_fraction == loss.memory.fill_fraction
    scores, gt = batch(seed=7)
    assert other(scores, gt) == loss(scores, gt)


def test_a_memory_that_was_saved_unsorted_is_sorted_when_loaded():
    """Earlier versions saved unsorted memories, and merging several processes gives one too."""
    loss, other = (RamboLoss(4, memory_length=2, memory_size=64) for _ in range(2))
    state = fill(loss, 2).state_dict()
    kept = state._metadata["memory"]["memory"]
    kept.update({name: kept[name].flip(1) for name in ("positives", "negatives")})
    other.load_state_dict(state)
    for name in ("positives", "negatives"):
        got, want = (getattr(each.memory, name) for each in (other, loss))
        assert torch.equal(got, want) and (got.diff() >= 0).all()


@pytest.mark.parametrize(
    "changed", [{"memory_length": 2}, {"memory_size": 32}, {"num_classes": 2}, {"num_classes": 9}]
)
def test_what_was_remembered_by_another_loss_is_dropped(changed, caplog):
    """A memory for another number of classes can have the same shape, but its scores do not fit."""
    caplog.set_level("INFO")
    arguments = {"num_classes": 4, "memory_length": 4, "memory_size": 64}
    other = RamboLoss(**{**arguments, **changed})
    before = state(other)
    other.load_state_dict(saved(fill(RamboLoss(**arguments), 5)))
    assert same(state(other), before) and other.memory.fill_fraction == 0
    (message,) = caplog.messages
    assert message.startswith("The score memory of the checkpoint is not loaded: ")


def write(memory, scores, gt, lowest=None):
    inputs = prepare_inputs(scores, gt, Processes(together=False))
    memory.write(inputs, torch.full((scores.shape[1],), torch.inf) if lowest is None else lowest)


def test_a_batch_larger_than_the_memory_keeps_its_highest():
    memory = ScoreMemory(1, size=16)
    scores = torch.arange(100.0)[:, None]
    gt = torch.ones(100, dtype=torch.int64)
    gt[50:60] = 0
    write(memory, scores, gt)
    assert key_scores(memory.positives).tolist() == [[50.0, 52.0, 55.0, 57.0]]
    assert key_scores(memory.negatives).tolist() == [list(range(84, 100))]
    assert not key_segments(memory.negatives).any()
    kept = memory.tensors().values()
    assert sum(b.numel() * b.element_size() for b in kept) == 8 * (16 + 4 + 1 + 1)


def test_a_class_that_is_only_remembered_pushes_nothing():
    """No positive of the class would be pushed up, so the scores of the class would only fall."""
    scores, gt = batch(c=2, p=20)
    loss = RamboLoss(2, beta=0.0, memory_length=1)
    loss(scores.requires_grad_(), gt)
    of_class_1 = scores.detach().clone().requires_grad_()
    loss(of_class_1, gt.where(gt == 1, 2)).backward()
    assert loss.stats.present.tolist() == [False, True]
    assert not of_class_1.grad[:, 0].any() and of_class_1.grad[:, 1].any()


@pytest.mark.parametrize("size", [8, 5000])
def test_the_highest_above_their_class_are_kept(size):
    """The negatives of a memory contain neither ignored rows nor positives."""
    g = torch.Generator().manual_seed(size)
    scores, gt = torch.randn(1000, 3, generator=g), torch.randint(-1, 40, (1000,), generator=g)
    gt = gt.clamp(max=3)
    lowest = torch.tensor([0.0, -3.0, 9.0])
    memory = ScoreMemory(1, size)
    write(memory, scores, gt, lowest)
    found = memory.negatives[memory.negatives != EMPTY_KEY]
    negative = (gt[:, None] >= 0) & (gt[:, None] != torch.arange(3))
    want = (scores - lowest)[negative].sort().values[-size:]
    heights = key_scores(found) - lowest[key_segments(found)]
    assert torch.equal(heights.sort().values, want)


def test_all_is_where_the_scores_are_whatever_the_default_device():
    scores, gt = batch(40, 3)
    loss, other = (RamboLoss(3, memory_length=2, memory_size=16) for _ in range(2))
    want = [loss(scores.requires_grad_(), gt).item() for _ in range(2)]
    with torch.device("meta"):
        assert [other(scores, gt).item() for _ in range(2)] == want


def test_a_memory_in_an_old_format_starts_empty():
    """The old format stored other tensors, as entries of the state dict or in its metadata."""
    old = {"positives": torch.full((2, 4), -1), "lists": torch.zeros(2, 16, dtype=torch.int32)}
    loss = RamboLoss(4, memory_length=2, memory_size=16)
    saved = loss.state_dict()
    saved.update({f"memory.{name}": value for name, value in old.items()})
    saved._metadata["memory"]["memory"] = old
    loss.load_state_dict(saved)  # strict: fails on unexpected keys
    assert loss.memory.fill_fraction == 0 and (loss.memory.negatives == EMPTY_KEY).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_are_kept_in_float32_whatever_the_model_or_the_default(dtype):
    loss, cast = RamboLoss(4, memory_length=2), RamboLoss(4, memory_length=2)
    torch.set_default_dtype(dtype)
    try:
        default = RamboLoss(4, memory_length=2)
        for seed in range(3):
            scores, gt = batch(seed=seed)
            scores = scores.float()
            want = loss(scores.requires_grad_(), gt)
            assert cast.to(dtype)(scores, gt) == want
            assert default(scores, gt) == want
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(cast.memory.negatives, loss.memory.negatives)
    assert torch.equal(default.memory.negatives, loss.memory.negatives)


def test_a_loss_remembers_what_lies_highest_above_its_class():
    """The scores of class 1 lie far below those of class 0, and the memory keeps them anyway."""
    scores, gt = torch.zeros(40, 2), torch.full((40,), 2)
    scores[:, 1] -= 50
    scores[:, 0] += torch.linspace(0, 1, 40)
    gt[0], gt[1] = 0, 1
    scores[0, 0], scores[1, 1] = 5.0, -60.0  # none is above class 0's positive, all above 1's
    loss = RamboLoss(2, memory_length=1, memory_size=8)
    loss(scores.requires_grad_(), gt)
    assert key_segments(loss.memory.negatives[0]).tolist() == [1] * 8
