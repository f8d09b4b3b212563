"""Mixed precision: the loss ranks in float32, and a scaled loss has exactly the scaled gradient."""

import copy

import pytest
import torch

from rambo_det import RamboLoss

from .strategies import batch

HALF = [torch.bfloat16, torch.float16]


def value_and_grad(loss, scores, gt, scale=1.0):
    scores = scores.detach().clone().requires_grad_()
    value = loss(scores, gt)
    (value * scale).backward()
    return value.detach(), scores.grad


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_ranked_as_the_same_numbers_in_float32(dtype):
    """4096 distinct scores become about 1300 in bfloat16; λ, ranks and sums stay in float32."""
    losses = RamboLoss(4, memory_length=2), RamboLoss(4, memory_length=2)
    for seed in range(3):
        scores, gt = batch(n=4096, seed=seed)
        half = scores.to(dtype)
        value, grad = value_and_grad(losses[0], half, gt)
        want, want_grad = value_and_grad(losses[1], half.float(), gt)
        assert value.dtype == torch.float32 and torch.equal(value, want)
        assert grad.dtype == dtype and torch.equal(grad, want_grad.to(dtype)) and grad.any()


@pytest.mark.parametrize(
    "dtype, rule",
    [(dtype, {}) for dtype in (torch.float32, *HALF)] + [(torch.float32, {"lambda_": 50.0})],
)
@pytest.mark.parametrize("scale", [2.0**-7, 2.0, 2.0**16, 2.0**24])
def test_the_gradient_is_linear_in_what_arrives(dtype, rule, scale):
    """A blackbox backward that perturbs the scores by the incoming gradient would not be linear."""
    scores, gt = batch(seed=2)
    value, grad = value_and_grad(RamboLoss(4, **rule), scores.to(dtype), gt)
    same, scaled = value_and_grad(RamboLoss(4, **rule), scores.to(dtype), gt, scale)
    assert torch.equal(value, same) and grad.any()
    # Scaling is exact for normal numbers of the dtype: float16 has them from 2^-14 to 65504.
    want = grad.double() * scale
    info = torch.finfo(dtype)
    normal = (want == 0) | ((want.abs() <= info.max) & (want.abs() >= info.tiny))
    normal &= (grad == 0) | (grad.abs() >= info.tiny)
    assert torch.equal(scaled.double()[normal], want[normal])
    assert normal.double().mean() > (0.02 if dtype == torch.float16 else 0.999)


def test_a_loss_scale_is_multiplied_before_the_gradient_is_rounded():
    """Otherwise float16 would lose the small gradients that the loss scale is to preserve."""
    scores, gt = batch(n=4096, seed=1)
    half = scores.half()
    _, grad = value_and_grad(RamboLoss(4), half, gt)
    _, scaled = value_and_grad(RamboLoss(4), half, gt, 2.0**16)
    _, want = value_and_grad(RamboLoss(4), half.float(), gt, 2.0**16)
    assert torch.equal(scaled, want.half()) and scaled.isfinite().all()
    assert not torch.equal(grad.double() * 2.0**16, scaled.double())


@pytest.fixture
def model():
    pytest.importorskip("detectron2")
    from .architectures import build

    return build("faster_rcnn")


def losses_of(model, dtype=torch.bfloat16):
    from .architectures import training_losses

    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        return training_losses(model)[0]


def test_a_training_step_under_autocast(model):
    """Under bfloat16 autocast, which a CPU supports, the criterion gets float32 log odds."""
    seen = []
    criterion = model.roi_heads.box_predictor.rambo_loss
    # Records the arguments of each call of the criterion.
    handle = criterion.register_forward_pre_hook(lambda _, args: seen.append(args))
    losses = losses_of(model)
    handle.remove()
    scores, gt_classes, *_ = seen[0]
    assert scores.dtype == torch.float32 and losses["loss_cls"].dtype == torch.float32
    loss = RamboLoss(criterion.num_classes, margin=criterion.spec.margin, beta=criterion.spec.beta)
    want = loss(scores.detach(), gt_classes) * criterion.weight
    assert torch.equal(losses["loss_cls"].detach(), want)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    logits = model.roi_heads.box_predictor.cls_score
    assert logits.weight.grad.dtype == torch.float32 and logits.weight.grad.any()


def test_a_loss_scale_scales_the_gradient_of_every_parameter(model):
    twin = copy.deepcopy(model)
    losses_of(model, torch.float32)["loss_cls"].backward()
    plain = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert "roi_heads.box_predictor.cls_score.weight" in plain and len(plain) > 20
    (losses_of(twin, torch.float32)["loss_cls"] * 2.0**12).backward()
    for key, parameter in twin.named_parameters():
        assert key not in plain or torch.equal(parameter.grad, plain[key] * 2.0**12), key
