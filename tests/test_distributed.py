"""One batch over several gloo processes gives what one process gives for the whole batch."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rambo_det import RamboLoss
from rambo_det.losses import ScoreMemory
from rambo_det.losses.distributed import Processes
from rambo_det.losses.inputs import prepare_inputs
from rambo_det.losses.sort_keys import EMPTY_KEY, key_scores, key_segments

from .forked import in_processes

CLASSES, FEATURES = 3, 6

#: Number of processes -> number of rows and of positive rows in each process.
UNEVEN = {2: [(40, 6), (7, 3)], 4: [(30, 5), (3, 1), (25, 2), (9, 9)]}
ONE_EMPTY = {2: [(0, 0), (25, 5)], 4: [(12, 3), (0, 0), (20, 0), (5, 5)]}
NO_POSITIVE = {2: [(10, 0), (12, 0)], 4: [(10, 0), (0, 0), (4, 0), (4, 0)]}
LOSSES = {
    "default": {},
    "fixed": {"lambda_": 300.0, "memory_length": 2},
    "memory": {"memory_length": 2, "beta": 0.3},
    "classes": {"beta": 0.0},
}


def parts(sizes, step):
    """Returns features and classes of each process, with ties and ignored rows."""
    g = torch.Generator().manual_seed(step)
    found = []
    for rows, positives in sizes:
        x = torch.randint(-4, 5, (rows, FEATURES), generator=g) / 4
        gt = torch.full((rows,), CLASSES)
        gt[:positives] = torch.randint(0, CLASSES, (positives,), generator=g)
        gt[positives : positives + rows // 10] = -1
        found.append((x, gt))
    return found


def head(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Linear(FEATURES, CLASSES).to(dtype)


def scores_from(model, x):
    # In float64, a sum over processes and a sum over rows differ by less than 1e-5. The loss
    # rounds the scores to float32 before it ranks them.
    return model(x.double())


def one_process(kind, batches):
    """Returns losses and weight gradients of one process that has all rows of each step."""
    model, loss = head(), RamboLoss(CLASSES, global_ranking=False, **LOSSES[kind])
    found = []
    for batch in batches:
        x, gt = (torch.cat([p[i] for p in batch]) for i in range(2))
        model.zero_grad()
        value = loss(scores_from(model, x), gt)
        value.backward()
        found.append((value.item(), model.weight.grad.clone()))
    return found


class Detector(nn.Module):
    """A model that contains its loss, as Detectron2's models do."""

    def __init__(self, **kwargs):
        super().__init__()
        self.head, self.loss = head(), RamboLoss(CLASSES, **kwargs)

    def forward(self, x, gt):
        return self.loss(scores_from(self.head, x), gt)


def compare(rank, world):
    for sizes in (UNEVEN, ONE_EMPTY, NO_POSITIVE):
        batches = [parts(sizes[world], step) for step in range(4)]
        for kind in LOSSES:
            # For an empty batch, the gradients of a DDP model are zero, not None.
            model = DistributedDataParallel(Detector(**LOSSES[kind]))
            total = 0.0
            for batch, (value, grad) in zip(batches, one_process(kind, batches), strict=True):
                x, gt = batch[rank]
                model.zero_grad()
                got = model(x, gt)
                (got * 3).backward()  # a loss weight
                assert abs(got.item() - value) <= 1e-6, (kind, sizes)
                difference = (model.module.head.weight.grad - 3 * grad).norm()
                assert difference <= 1e-5 * 3 * grad.norm(), (kind, sizes, difference)
                total += grad.norm()
            assert (total > 0) == (sizes is not NO_POSITIVE)


def alone(rank, world):
    """Checks that no process waits in eval mode, without gradients or without global ranking."""
    x, gt = parts(UNEVEN[world], 0)[rank]
    scores = scores_from(head(), x)
    want = one_process("default", [[(x, gt)]])[0][0]
    if rank == 0:
        with torch.no_grad():
            assert RamboLoss(CLASSES)(scores, gt).item() == want
        assert RamboLoss(CLASSES).eval()(scores, gt).item() == want
        assert RamboLoss(CLASSES, global_ranking=False)(scores, gt).item() == want


def bytes_sent(rank, world):
    """Checks that the sent bytes are O(P): they do not depend on the number of negatives."""
    sent = []
    for lambda_, rows in itertools.product((None, 300.0), (100, 10_000)):
        g = torch.Generator().manual_seed(rank)
        gt = torch.full((rows,), CLASSES)
        gt[:10] = torch.randint(0, CLASSES, (10,), generator=g)
        loss = RamboLoss(CLASSES, memory_length=2, lambda_=lambda_)
        scores = torch.randn(rows, CLASSES, generator=g).requires_grad_()
        loss(scores, gt)
        sent.append(loss.stats.bytes_sent)
    positives = 10 * world
    # A header of four numbers, the keys, and sums for the positives of both terms: of negatives,
    # of remembered negatives, and of negatives in the second ranking.
    one, two = (32 + 8 * 10 + sums * 2 * 8 * positives for sums in (2, 3))
    assert sent == [one, one, two, two]


def not_finite(rank, world):
    """Checks that one process's score that is not finite makes the loss NaN in all processes."""
    scores = torch.zeros(5, CLASSES)
    if rank == world - 1:
        scores[0, 0] = torch.nan
    loss = RamboLoss(CLASSES, memory_length=1)
    assert loss(scores.requires_grad_(), torch.zeros(5, dtype=torch.int64)).isnan()
    assert loss.memory.fill_fraction == 0


def shards(rank, world):
    """Checks that a checkpoint restores the negatives of all processes, in N processes or one."""
    loss = RamboLoss(CLASSES, memory_length=2, memory_size=128)
    model = head()
    for batch in (parts(UNEVEN[world], step) for step in range(2)):
        loss(scores_from(model, batch[rank][0]), *batch[rank][1:])
    loss.memory.all_gather_for_checkpoint()
    state = [loss.state_dict()]
    dist.broadcast_object_list(state)  # what the main process saves
    saved = copy.deepcopy(state[0])
    saved._metadata = state[0]._metadata
    other = RamboLoss(CLASSES, memory_length=2, memory_size=128)
    other.load_state_dict(saved)
    for name, buffer in loss.memory.tensors().items():
        assert torch.equal(other.memory.tensors()[name], buffer), name
    every: list = [None] * world
    dist.all_gather_object(every, kept(loss.memory))
    dist.barrier()
    if rank == 0:
        dist.destroy_process_group()
        whole = ScoreMemory(2, 1024)
        for step in range(2):
            x, gt = (torch.cat([p[i] for p in parts(UNEVEN[world], step)]) for i in (0, 1))
            inputs = prepare_inputs(scores_from(model, x), gt, Processes(together=False))
            whole.write(inputs, torch.full((CLASSES,), torch.inf))
        single = RamboLoss(CLASSES, memory_length=2, memory_size=128)
        single.load_state_dict(saved)
        for slot, (want, got) in enumerate(zip(kept(whole), kept(single.memory), strict=True)):
            union = sorted(pair for process in every for pair in process[slot])
            assert union == want  # the shards are the whole batch's memory
            assert [score for score, _ in got] == [score for score, _ in want][-128:]


def kept(memory):
    """Returns (score, list) of the negatives of each batch, in ascending order."""
    rows = [row[row != EMPTY_KEY] for row in memory.negatives]
    pairs = [(key_scores(row).tolist(), key_segments(row).tolist()) for row in rows]
    return [sorted(zip(*pair, strict=True)) for pair in pairs]


def stale(rank, world):
    """Checks that nothing is saved that was gathered before a later batch or a load."""
    loss, loaded = (RamboLoss(CLASSES, memory_length=2, memory_size=128) for _ in range(2))
    for step in range(2):
        for each, batch in ((loss, step), (loaded, step + 2)):
            x, gt = parts(UNEVEN[world], batch)[rank]
            each(scores_from(head(), x), gt)
        if step == 0:
            loss.memory.all_gather_for_checkpoint()
    saved = loss.state_dict()
    # The checkpoint has the negatives of this process, of both batches.
    assert torch.equal(saved._metadata["memory"]["memory"]["negatives"], loss.memory.negatives)
    loaded.memory.all_gather_for_checkpoint()
    loaded.load_state_dict(saved)
    again = loaded.state_dict()._metadata["memory"]["memory"]
    assert torch.equal(again["positives"], loss.memory.positives)


def _checks(rank, world):
    for check in (compare, alone, bytes_sent, not_finite, stale, shards):
        check(rank, world)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_are_one_process_with_the_whole_batch(world, tmp_path):
    in_processes(world, tmp_path, _checks)
