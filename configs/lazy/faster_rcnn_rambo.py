"""COCO, Faster R-CNN with a ResNet-50 FPN, 1x schedule, AP loss: faster_rcnn_rambo.yaml as a
LazyConfig, without its clipping of gradients."""

from detectron2.model_zoo import get_config

from rambo_det import RamboFastRCNNOutputLayers

model = get_config("common/models/mask_rcnn_fpn.py").model
dataloader = get_config("common/data/coco.py").dataloader
optimizer = get_config("common/optim.py").SGD
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
train = get_config("common/train.py").train

model.roi_heads.box_predictor._target_ = RamboFastRCNNOutputLayers

for _part in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(_part)
model.backbone.bottom_up.freeze_at = 2
dataloader.train.mapper.use_instance_mask = False
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "output/lazy_faster_rcnn_rambo"
