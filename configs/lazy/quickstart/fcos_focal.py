"""A small FCOS on the drawn shapes, focal loss: the stock twin of fcos_rambo.py."""

from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config

model = get_config("common/models/fcos.py").model
dataloader = get_config("common/data/coco.py").dataloader
optimizer = get_config("common/optim.py").SGD
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
train = get_config("common/train.py").train

model.pixel_mean = [127.5, 127.5, 127.5]
model.pixel_std = [64.0, 64.0, 64.0]
model.backbone.bottom_up.stem.norm = "GN"
model.backbone.bottom_up.stages.update(depth=18, norm="GN")
model.backbone.bottom_up.stages.pop("stride_in_1x1")  # basic blocks have no 1x1 convolution
model.backbone.update(norm="GN", out_channels=64)
model.backbone.top_block.in_channels = 64
model.head.update(input_shape=[ShapeSpec(channels=64)] * 5, conv_dims=[64, 64])
model.update(num_classes=4, test_score_thresh=0.0)
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations[0].update(short_edge_length=(96,), max_size=96)
dataloader.test.mapper.augmentations[0].update(short_edge_length=96, max_size=96)
dataloader.train.dataset.names = "rambo_shapes_train"
dataloader.test.dataset.names = "rambo_shapes_val"
dataloader.train.update(total_batch_size=4, num_workers=0)
dataloader.test.num_workers = 0
optimizer.lr = 0.01
lr_multiplier.warmup_length = 0.1
train.update(init_checkpoint="", max_iter=1000, eval_period=500)
train.checkpointer.period = 500
train.output_dir = "output/quickstart_fcos_focal"
