"""The keys that this plugin adds to a Detectron2 config."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_rambo_config(cfg: CN) -> None:
    """Adds the nodes ``MODEL.RAMBO``, the loss, and ``RAMBO_TRAIN``; no other node is touched.

    Call it on ``get_cfg()`` before a yaml that has such keys is merged.
    """
    cfg.MODEL.RAMBO = CN()
    rambo = cfg.MODEL.RAMBO
    # What is ranked. "log_odds": log(p / (1 - p)) of the softmax probability p, which orders boxes
    # as the stock head's softmax scores do without their saturation; "softmax": p itself;
    # "logits": the class outputs, scored by a sigmoid at inference.
    rambo.SCORE = "log_odds"
    # Margin α >= 0, in units of score: a positive has to beat a negative by more than it.
    rambo.MARGIN = 0.5
    # How λ, the strength of the blackbox interpolation, is chosen. "each": for every positive, such
    # that it moves above all negatives and its gradient is its share of the loss. "fixed": LAMBDA,
    # as in the paper.
    rambo.LAMBDA_RULE = "each"
    # λ > 0 for LAMBDA_RULE "fixed"; it acts on ranks that are not divided by their number.
    rambo.LAMBDA = 1000.0
    # β in [0, 1]: the loss is (1 - β) · (mean AP loss of the classes) + β · (AP loss of the scores
    # of all classes in one list).
    rambo.BETA = 0.5
    # τ >= 0: the scores of that many past batches count in the ranks of each class's list, as in
    # the paper. In our trainings that gained nothing.
    rambo.MEMORY_LENGTH = 0
    # >= 8: how many negatives of each past batch are kept (those highest above the lowest positive
    # of their class), and a quarter as many positives. Memory takes
    # 10 · MEMORY_LENGTH · MEMORY_SIZE bytes.
    rambo.MEMORY_SIZE = 8192
    # Where several processes train, rank their batches as one. False: each ranks its own images.
    rambo.GLOBAL_RANKING = True
    # > 0: weight of the loss, for it to stand beside the other losses of the detector.
    rambo.LOSS_WEIGHT = 0.2
    # >= 0: in so many iterations the stock classification loss (cross entropy, focal), at first
    # alone, passes over to this one.
    rambo.CE_WARMUP = 0

    # What RamboTrainer (rambo-train, tools/train_net.py) adds to Detectron2's trainer. A script of
    # your own that trains with DefaultTrainer does not act on these keys.
    cfg.RAMBO_TRAIN = CN()
    train = cfg.RAMBO_TRAIN
    # With TEST.EVAL_PERIOD > 0, keep the weights of the best evaluation so far in model_best.pth;
    # best.json tells all evaluations and which one that was.
    train.KEEP_BEST = True
    # The higher, the better; as metrics.json names it: "bbox/AP", "bbox/AP50", "bbox/AP-<class>",
    # "voc/AP50", "segm/AP"; with several test sets "<data set>/bbox/AP".
    train.BEST_METRIC = "bbox/AP"
    # > 0: end the training when that many evaluations in a row were not better than the best one
    # before them. 0: train to the end.
    train.PATIENCE = 0
    # > 0: multiplies the classification loss of the detector (loss_cls), whichever it is. Stock
    # losses have no weight of their own; to compare losses, tune it for each.
    train.CLS_WEIGHT = 1.0
    # At the end make the scores of model_final.pth probabilities, as rambo-calibrate does: fitted
    # to 500 images of the first training set ("train") or of the set of that name. The raw weights
    # are then in model_raw.pth, the thresholds of the classes in thresholds.json. "off": not.
    train.CALIBRATE = "off"

    # Configs of earlier versions have them.
    for key in (
        "MODEL.RAMBO.CE_WEIGHT",
        "MODEL.RAMBO.IOU_THRESHOLDS",
        "MODEL.RAMBO.LIFT",
        "MODEL.RAMBO.RPN",
        "RAMBO_TRAIN.IMAGES",
    ):
        if not cfg.key_is_deprecated(key):  # this may be called again
            cfg.register_deprecated_key(key)
