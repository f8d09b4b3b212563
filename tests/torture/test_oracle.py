"""Random batches of up to 2000 scores against the brute-force O(N²) float64 oracle.

The tests are those of tests/test_against_oracle.py; here with longer lists and, in the whole form,
10 000 cases.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rambo_det.losses import RamboLoss

from .. import test_against_oracle as oracle_tests
from ..strategies import batches, margins, steps
from .conftest import WHOLE

LOOSE = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def all_sizes(longest):
    """Batches of every size: hypothesis prefers short ones, where all sorts of things meet."""
    long = batches(longest).filter(lambda batch: 2 * len(batch[0]) > longest)
    return st.one_of(batches(3), batches(20), batches(longest // 10), batches(longest), long)


@st.composite
def duplicated(draw, inner):
    """Batches some of whose rows are there twice, positives among them."""
    scores, gt = draw(inner)
    if len(scores) > 1 and draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        rows = torch.as_tensor(rng.integers(0, len(scores), len(scores)))
        scores, gt = scores[rows], gt[rows]
    return scores, gt


#: (scores (N, C), gt_classes (N,)) with N up to 2000, C up to 5.
long_batches = duplicated(all_sizes(2000))
#: At most 2000 scores of all classes, for what compares all with all.
flat_batches = duplicated(all_sizes(400))


@st.composite
def spoiled(draw):
    """Batches with one score, of a row that is in a list, that is not finite."""
    scores, gt = draw(flat_batches.filter(lambda batch: (batch[1] >= 0).any()))
    rows = (gt >= 0).nonzero().flatten()
    row = rows[draw(st.integers(0, len(rows) - 1))]
    column = draw(st.integers(0, scores.shape[1] - 1))
    scores[row, column] = draw(st.sampled_from([torch.inf, -torch.inf, torch.nan]))
    return scores, gt


def _again(test, *strategies):
    """The inner test of a hypothesis test, on other strategies."""
    return given(*strategies)(test.hypothesis.inner_test)


def not_finite(batch):
    scores, gt = batch
    loss = RamboLoss(scores.shape[1], memory_length=2)(scores.requires_grad_(), gt)
    assert loss.isnan()


#: What is tried: a test, and its cases in the short and in the whole form.
THEMES = {
    "lists of classes": (
        _again(
            oracle_tests.test_class_lists_equal_the_oracle, long_batches, margins, steps
        ),
        30, 4000,
    ),
    "one list of all": (
        _again(
            oracle_tests.test_interclass_list_equals_the_oracle, flat_batches, margins, steps
        ),
        30, 2500,
    ),
    "recall": (
        _again(
            oracle_tests.test_recall_loss_equals_the_oracle,
            long_batches, margins, steps, st.sampled_from(["log", "loglog"]),
        ),
        30, 1500,
    ),
    "memory": (
        _again(
            oracle_tests.test_memory_equals_the_oracle_on_concatenated_batches,
            st.lists(flat_batches, min_size=1, max_size=6), st.integers(0, 4), margins, steps,
        ),
        10, 1500,
    ),
    "not finite": (given(spoiled())(not_finite), 30, 500),
}  # fmt: skip


@pytest.mark.parametrize("theme", list(THEMES))
def test_equals_the_oracle(theme, record_property):
    test, short, long = THEMES[theme]
    number = long if WHOLE else short
    record_property("cases", number)
    settings(max_examples=number, **LOOSE)(test)()
