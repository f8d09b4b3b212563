"""One batch over several processes: real ones, with gloo, against one process with all of it."""

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

#: Rows of each process, and how many of them are positive, at most.
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
    """Features and classes of each process, with ties, ignored rows and every class somewhere."""
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
    # Of float64 weights, so that a sum over processes and one over rows differ by less than 1e-5;
    # rounded to what float32 ranks.
    return model(x.double())


def one_process(kind, batches):
    """Losses and weight gradients of one process that has all rows of each step."""
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
    """Has its loss in it, as Detectron2's models have."""

    def __init__(self, **kwargs):
        super().__init__()
        self.head, self.loss = head(), RamboLoss(CLASSES, **kwargs)

    def forward(self, x, gt):
        return self.loss(scores_from(self.head, x), gt)


def compare(rank, world):
    for sizes in (UNEVEN, ONE_EMPTY, NO_POSITIVE):
        batches = [parts(sizes[world], step) for step in range(4)]
        for kind in LOSSES:
            # What a DDP model gives for an empty batch is zero, not None.
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
    """Without global ranking, in eval mode and without gradients nothing waits for the others."""
    x, gt = parts(UNEVEN[world], 0)[rank]
    scores = scores_from(head(), x)
    want = one_process("default", [[(x, gt)]])[0][0]
    if rank == 0:
        with torch.no_grad():
            assert RamboLoss(CLASSES)(scores, gt).item() == want
        assert RamboLoss(CLASSES).eval()(scores, gt).item() == want
        assert RamboLoss(CLASSES, global_ranking=False)(scores, gt).item() == want


def bytes_sent(rank, world):
    """O(P): the same however many negatives there are."""
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
    # A header of four numbers, the keys, and sums over both terms' positives: of the negatives and
    # the remembered ones, and of the negatives in the second ranking.
    one, two = (32 + 8 * 10 + sums * 2 * 8 * positives for sums in (2, 3))
    assert sent == [one, one, two, two]


def not_finite(rank, world):
    """A score that is not finite in one process is a NaN in all."""
    scores = torch.zeros(5, CLASSES)
    if rank == world - 1:
        scores[0, 0] = torch.nan
    loss = RamboLoss(CLASSES, memory_length=1)
    assert loss(scores.requires_grad_(), torch.zeros(5, dtype=torch.int64)).isnan()
    assert loss.memory.fill_fraction == 0


def shards(rank, world):
    """A checkpoint of one process has the negatives of all, for as many processes or for one."""
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
            joined = [torch.cat([p[i] for p in parts(UNEVEN[world], step)]) for i in (0, 1)]
            inputs = prepare_inputs(
                scores_from(model, joined[0]), joined[1], Processes(together=False)
            )
            whole.write(inputs, torch.full((CLASSES,), torch.inf))
        single = RamboLoss(CLASSES, memory_length=2, memory_size=128)
        single.load_state_dict(saved)
        for slot, (want, got) in enumerate(zip(kept(whole), kept(single.memory), strict=True)):
            union = sorted(pair for process in every for pair in process[slot])
            assert union == want  # together they are the memory of the whole batch
            assert [score for score, _ in got] == [score for score, _ in want][-128:]


def kept(memory):
    """(score, list) of the negatives of each batch, rising."""
    rows = [row[row != EMPTY_KEY] for row in memory.negatives]
    pairs = [(key_scores(row).tolist(), key_segments(row).tolist()) for row in rows]
    return [sorted(zip(*pair, strict=True)) for pair in pairs]


def stale(rank, world):
    loss = RamboLoss(CLASSES, memory_length=2, memory_size=128)
    for step in range(2):
        x, gt = parts(UNEVEN[world], step)[rank]
        loss(scores_from(head(), x), gt)
        if step == 0:
            loss.memory.all_gather_for_checkpoint()
    saved = loss.state_dict()._metadata["memory"]["memory"]
    assert torch.equal(
        saved["negatives"], loss.memory.negatives
    )  # of this process, and of both batches


def _checks(rank, world):
    for check in (compare, alone, bytes_sent, not_finite, stale, shards):
        check(rank, world)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_are_one_process_with_the_whole_batch(world, tmp_path):
    in_processes(world, tmp_path, _checks)
