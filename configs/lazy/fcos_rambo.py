"""COCO, FCOS with a ResNet-50 FPN, 1x schedule, AP loss."""

from detectron2.model_zoo import get_config

from rambo_det import RamboFCOS

model = get_config("common/models/fcos.py").model
dataloader = get_config("common/data/coco.py").dataloader
optimizer = get_config("common/optim.py").SGD
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
train = get_config("common/train.py").train

model._target_ = RamboFCOS
model.test_score_thresh = 0.0  # until a calibration no threshold fits the scores

model.backbone.bottom_up.freeze_at = 2
dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 0.01
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "output/lazy_fcos_rambo"
