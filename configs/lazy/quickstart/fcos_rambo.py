"""A small FCOS on the drawn shapes, AP loss."""

from rambo_det import RamboFCOS

from .fcos_focal import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model._target_ = RamboFCOS
train.output_dir = "output/quickstart_fcos"
