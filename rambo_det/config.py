"""The keys that this plugin adds to a Detectron2 config."""

from detectron2.config import CfgNode as CN

from .errors import InputError


def check_has_rambo(cfg: CN) -> None:
    """Raises InputError if the keys of this plugin were not added to a config."""
    if "RAMBO" not in cfg.MODEL:
        remedy = "call rambo_det.add_rambo_config(cfg) first"
        raise InputError(f"config has no MODEL.RAMBO: {remedy}")


def add_rambo_config(cfg: CN) -> None:
    """Adds the nodes ``MODEL.RAMBO`` (the loss) and ``RAMBO_TRAIN`` (the trainer) to a config.

    Call it on ``get_cfg()``, before you merge a yaml file with these keys. No other node changes.
    A second call changes nothing.
    """
    if "RAMBO" in cfg.MODEL:
        return
    rambo = cfg.MODEL.RAMBO = CN()
    # The score that is ranked. "log_odds": log(p / (1 - p)) of the softmax probability p; it orders
    # boxes as the softmax does, but does not saturate. "softmax": p itself. "logits": the logit of
    # each class; at inference a sigmoid turns it into the box score. At inference, a RamboRetinaNet
    # scores boxes in the same way as here, a stock RetinaNet always by a sigmoid.
    rambo.SCORE = "log_odds"
    # Margin α >= 0, in units of the score: a positive must exceed a negative by more than α.
    rambo.MARGIN = 0.5
    # 0: no λ; each positive moves above all negatives, and the size of its gradient is its share of
    # the loss. > 0: λ, the interpolation strength of the paper's blackbox gradient, for all
    # positives. It applies to ranks that are not divided by the list's length.
    rambo.LAMBDA = 0.0
    # β in [0, 1]. The loss is (1 - β) · (mean of the AP losses of the classes) + β · (AP loss of a
    # list that has the scores of all classes).
    rambo.BETA = 0.5
    # τ >= 0: number of past batches whose scores count in the ranks of each class's list, as in the
    # paper. In our trainings no gain of four batches could be shown.
    rambo.MEMORY_LENGTH = 0
    # >= 8: number of negatives that a process keeps of each past batch: those highest above the
    # lowest positive of their class. It keeps up to a quarter as many positives. The memory takes
    # 10 · MEMORY_LENGTH · MEMORY_SIZE bytes per process.
    rambo.MEMORY_SIZE = 8192
    # With several processes: True ranks all their batches as one, False ranks each on its own.
    rambo.GLOBAL_RANKING = True
    # > 0: weight of the loss, which balances it against the other losses of the detector.
    rambo.LOSS_WEIGHT = 0.2
    # >= 0: number of warm-up iterations. The training starts with the stock classification loss
    # (cross entropy, focal loss) alone and changes linearly to the AP loss.
    rambo.CE_WARMUP = 0

    # The options of RamboTrainer (rambo-train, tools/train_net.py). Detectron2's DefaultTrainer,
    # for example in your own script, ignores these keys.
    train = cfg.RAMBO_TRAIN = CN()
    # With TEST.EVAL_PERIOD > 0: keep the weights of the best evaluation so far in model_best.pth.
    # best.json lists the metric of every evaluation and names the best one.
    train.KEEP_BEST = True
    # The metric of the best evaluation (higher is better), named as in metrics.json: "bbox/AP",
    # "bbox/AP50", "bbox/AP-<class>", "voc/AP50", "segm/AP"; with several test datasets
    # "<dataset>/bbox/AP".
    train.BEST_METRIC = "bbox/AP"
    # > 0: end the training after this many evaluations in a row that were not better than the best
    # evaluation before them. 0: train to the end.
    train.PATIENCE = 0
    # > 0: multiplies the classification loss of the detector (loss_cls), a stock loss or the AP
    # loss. Stock losses have no key for a weight; to compare losses, tune this weight for each.
    train.CLS_WEIGHT = 1.0
    # Calibration at the end of the training, as rambo-calibrate does it: the scores of
    # model_final.pth become probabilities. They are fitted to at most 500 images of the first
    # training dataset ("train") or of the named dataset. model_raw.pth then has the raw weights,
    # thresholds.json a score threshold for each class. "off": no calibration. Only rambo-train and
    # rambo-compare, whose default is "train", read this key; RamboTrainer alone ignores it.
    train.CALIBRATE = "off"

    # Configs written before the first release may have these keys.
    old = [f"MODEL.RAMBO.{name}" for name in ("CE_WEIGHT", "IOU_THRESHOLDS", "LIFT", "RPN")]
    for key in (*old, "RAMBO_TRAIN.IMAGES"):
        cfg.register_deprecated_key(key)
    message = "LAMBDA 0.0 is the rule 'each'; with any other LAMBDA the rule is 'fixed'"
    cfg.register_renamed_key("MODEL.RAMBO.LAMBDA_RULE", "MODEL.RAMBO.LAMBDA", message=message)
