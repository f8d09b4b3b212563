"""The baseline losses of the benchmarks compute what their names say."""

import importlib

import pytest
import torch
from baseline_losses import argsort_rambo, bucketed_ap, error_driven_ap

from rambo_det.losses import class_ap_loss

from .strategies import batch, grad_of


def drawn(seed, n, c, positives):
    """Returns float64 scores without ties and a 0/1 mask with at most one positive per row."""
    scores, gt = batch(n, c, positives, seed, std=3.0)
    positive = torch.nn.functional.one_hot(gt, c + 1)[:, :-1].double()
    return scores.double() + 2 * positive, positive


@pytest.mark.parametrize("n, c, positives", [(300, 4, 40), (50, 1, 1), (60, 1, 59), (20, 3, 0)])
def test_the_bucketed_ap_loss_has_the_gradient_of_the_error_driven_one(n, c, positives):
    for seed in range(5):
        scores, positive = drawn(seed, n, c, positives)
        want = grad_of(lambda s, p=positive: error_driven_ap(s, p, delta=0.0), scores)
        got = grad_of(lambda s, p=positive: bucketed_ap(s, p), scores, weight=2.0)
        torch.testing.assert_close(got, 2 * want, rtol=1e-12, atol=1e-15)
        assert (want != 0).any() == (positives > 0)


def test_the_error_driven_update_is_that_of_its_paper():
    """The positive scores 0, the negatives 0.5, -0.5 and 3; the step is the line of δ = 1."""
    scores = torch.tensor([[0.0], [0.5], [-0.5], [3.0]], dtype=torch.float64)
    positive = torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    share = torch.tensor([0.75, 0.25, 1.0], dtype=torch.float64) / (1 + 2.0)
    got = grad_of(error_driven_ap, scores, positive).flatten()
    torch.testing.assert_close(got, torch.cat([-share.sum()[None], share]))


def test_the_double_argsort_has_the_gradient_of_the_loss():
    scores, positive = drawn(0, 200, 4, 30)
    scores = scores.float()  # float64 then has values between the scores, which decide ties
    gt = torch.where(positive.any(1), positive.argmax(1), 4)
    want = grad_of(lambda s: class_ap_loss(s, gt, lambda_=5e3), scores)
    got = grad_of(lambda s: argsort_rambo(s, positive, 5e3), scores)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-9)
    assert (want != 0).sum() > 50


@pytest.mark.parametrize("tool", ["benchmark_loss", "benchmark_step"])
def test_a_users_mistake_is_named_before_anything_is_timed(tool, tmp_path, capsys):
    if tool == "benchmark_step":
        pytest.importorskip("detectron2")
    main = importlib.import_module(tool).main
    (tmp_path / "afile").touch()
    output = ["--out", "afile/x.json"] if tool == "benchmark_step" else ["--output", "afile"]
    output[1] = str(tmp_path / output[1])
    for words, message in ((["--device", "nothing"], "--device nothing: "), (output, "afile")):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --") and message in error and error.count("\n") == 1
