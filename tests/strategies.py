"""Random batches, margins and λ rules for the tests of the loss, and helpers that run the loss."""

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rambo_det.losses.distributed import Processes
from rambo_det.losses.gradient import attach_gradient
from rambo_det.losses.inputs import prepare_inputs
from rambo_det.losses.ranking import RankingSpec, compute_ranking

from .torture import WHOLE

#: Generators of scores. "ties" has few distinct values, so scores are tied; "normal" has no ties.
VALUES = {
    "ties": lambda rng, shape: rng.integers(-3, 4, shape) / 2,
    "all equal": lambda rng, shape: np.zeros(shape),
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "tight": lambda rng, shape: rng.normal(0, 1e-3, shape),
    "wide": lambda rng, shape: rng.normal(0, 1, shape) * 10.0 ** rng.integers(-6, 7, shape),
}


def batch(n=200, c=4, p=20, seed=0, std=1.0):
    """Returns scores ``(n, c)`` and classes ``(n,)``, of which the first ``p`` are positive."""
    g = torch.Generator().manual_seed(seed)
    gt = torch.full((n,), c)
    gt[:p] = torch.randint(0, c, (p,), generator=g)
    return torch.randn(n, c, generator=g) * std, gt


def same(a, b):
    """Returns whether two dicts of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def grad_of(loss, scores, *args, weight=1.0):
    leaf = scores.clone().requires_grad_()
    (loss(leaf, *args) * weight).backward()
    return leaf.grad


def examples(number):
    """Returns Hypothesis settings for ``number`` examples; ten times as many in make torture."""
    number = 10 * number if WHOLE else number
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def batches(draw, max_rows=60):
    """Draws (scores (N, C) float32, gt_classes (N,)), with no, few, mixed or only positives.

    Some batches contain duplicate rows. In ``make torture`` some are up to 30 times as long.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = st.integers(0, max_rows)
    n = draw(st.one_of(sizes, st.integers(0, 30 * max_rows)) if WHOLE else sizes)
    c = draw(st.integers(1, 5))
    values = VALUES[draw(st.sampled_from(sorted(VALUES)))]
    scores = torch.tensor(values(rng, (n, c)), dtype=torch.float32)
    kind = draw(st.sampled_from(["mixed", "few", "none", "all"]))
    low, high = {"mixed": (-1, c + 1), "few": (c, c + 1), "none": (c, c + 1), "all": (0, c)}[kind]
    gt = rng.integers(low, high, n)
    if kind == "few":
        gt[: n // 20 + 1] = rng.integers(0, c, len(gt[: n // 20 + 1]))
    rows = torch.arange(n)
    if n and draw(st.booleans()):
        rows = torch.tensor(rng.integers(0, n, n))
    return scores[rows], torch.tensor(gt)[rows]


steps = st.one_of(st.just({}), st.floats(1e-3, 1e7).map(lambda x: {"lambda_": x}))
margins = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])


def spec(per_class, margin, **step):
    """Returns the spec of a ranking: one list per class, or one list of all classes."""
    lists = {"per_class": per_class, "interclass": not per_class, "beta": 0.5 if per_class else 1.0}
    return RankingSpec(margin, **lists, **step)


def run(scores, gt, per_class, margin, step):
    """Returns the loss, the result of compute_ranking, and the gradient of the float64 scores."""
    leaf, alone = scores.double().requires_grad_(), Processes(together=False)
    inputs = prepare_inputs(leaf, gt, alone)
    result = compute_ranking(inputs, spec(per_class, margin, **step), alone)
    loss = attach_gradient(leaf, inputs.scores, result.loss, result.gradient, alone)
    loss.backward()
    return loss.detach(), result, leaf.grad.cpu().numpy()


def assert_same_gradient(got, want, step):
    """Checks that gradients are equal; with a λ per positive, up to rounding of running sums."""
    np.testing.assert_array_equal(got == 0, want == 0)
    rtol, atol = (0, 0) if "lambda_" in step else (1e-9, 1e-13)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
