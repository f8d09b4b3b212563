"""LazyConfigs give the same run as yaml configs; tools/lazyconfig_train_net.py works."""

import inspect
import re
from functools import partial

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, get_cfg
from detectron2.data import DatasetCatalog, build
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from detectron2.layers import ShapeSpec
from detectron2.utils.env import seed_all_rng

import rambo_det
from rambo_det.cli.predict import main as predict
from rambo_det.cli.train import main as train
from rambo_det.engine.arguments import parse_args
from rambo_det.engine.lazy import LazyRun, load_lazy_config
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

from .command_line import call, own_data, refused
from .forked import python
from .models import CONFIGS, write_coco
from .test_follow import best_of

main = partial(train, lazy=True)
FCOS = "configs/lazy/quickstart/fcos_rambo.py"
# The full COCO configs, made small by the same changes in yaml and in LazyConfig.
YAML = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "SEED", 1,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "GN", "INPUT.MAX_SIZE_TRAIN", 96,
    "INPUT.MIN_SIZE_TRAIN", (96,), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0,
    "SOLVER.MAX_ITER", 5, "SOLVER.STEPS", (4,), "SOLVER.WARMUP_ITERS", 0, "DATASETS.TEST", (),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 100,
]  # fmt: skip


def lazy_twin(file, names, folder):
    cfg = LazyConfig.load(str(CONFIGS / "lazy" / file))
    resnet = cfg.model.backbone.bottom_up
    resnet.stem.norm = resnet.stages.norm = "GN"
    resnet.stages.depth = 18
    resnet.stages.pop("stride_in_1x1")
    if "in_channels" in cfg.model.backbone.top_block:  # RetinaNet's P6 is made of res5
        cfg.model.backbone.top_block.in_channels = 512
    if "roi_heads" in cfg.model:
        cfg.model.proposal_generator.post_nms_topk = (100, 100)
        cfg.model.roi_heads.batch_size_per_image = 32
        cfg.model.roi_heads.box_head.fc_dims = [32, 32]
        cfg.model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=32)
    cfg.dataloader.train.mapper.augmentations[0].update(short_edge_length=(96,), max_size=96)
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=96, max_size=96)
    cfg.dataloader.train.update(total_batch_size=2, num_workers=0)
    if "seed=cfg.SEED" in inspect.getsource(build):  # newer Detectron2: SEED orders a yaml's data
        cfg.dataloader.train.sampler = LazyCall(TrainingSampler)(size=4, seed=1)
    cfg.dataloader.train.dataset.names = cfg.dataloader.test.dataset.names = names
    cfg.dataloader.test.num_workers = 0
    cfg.lr_multiplier.warmup_length = 0.0
    cfg.train.update(output_dir=str(folder), init_checkpoint="", max_iter=5, device="cpu", seed=1)
    cfg.train.eval_period = 0
    return cfg


SAME_AS_YAML = ["faster_rcnn_rambo", "retinanet_rambo"]


@pytest.mark.parametrize("name", SAME_AS_YAML)
def test_the_same_run_as_from_yaml(name, tmp_path, catalogs, monkeypatch):
    torch.set_num_threads(1)  # several threads may add in another order the second time
    register_coco_instances("lazy_shapes", {}, *write_coco(tmp_path / "data"))
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.merge_from_list([*YAML, "DATASETS.TRAIN", ("lazy_shapes",), "OUTPUT_DIR", str(tmp_path)])
    seed_all_rng(1)
    trainer = RamboTrainer(cfg)
    trainer.train()

    seed_all_rng(1)
    run = LazyRun(lazy_twin(f"{name}.py", "lazy_shapes", tmp_path))
    monkeypatch.setattr(LazyRun, "test", lambda *_: {})  # the yaml's run has no test set either
    run.fit(resume=False)
    for key, history in trainer.storage.histories().items():
        if "loss" in key or key.startswith("rambo/") and "/AP-" not in key:
            theirs = [v for v, _ in run.trainer.storage.history(key).values()]
            ours = [v for v, _ in history.values()]
            # The schedules round the learning rate differently. The weights first differ in the
            # last digit; the difference grows with each step and can exchange two ranks.
            rel = 1e-4 if "loss" in key else 1e-3
            assert len(ours) == 5 and theirs == pytest.approx(ours, rel=rel), key
    assert "total_loss" in trainer.storage.histories()


def test_an_image_of_the_test_set_that_vanishes_is_named(tmp_path, catalogs):
    register_coco_instances("lazy_shapes", {}, *write_coco(tmp_path / "data"))
    cfg = lazy_twin("retinanet_rambo.py", "lazy_shapes", tmp_path)
    (tmp_path / "data" / "train" / "0001.png").unlink()
    with pytest.raises(InputError, match="train/0001.png is missing"):
        LazyRun.test(cfg, LazyRun.build_model(cfg))


@pytest.fixture
def arguments(tmp_path, catalogs):
    data, _ = own_data(tmp_path / "data", "lz")
    keys = ["dataloader.train.dataset.names=lz_train", "dataloader.test.dataset.names=lz_val"]
    keys += ["dataloader.train.total_batch_size=2", f"train.output_dir={tmp_path}/out"]
    return data, keys


def test_what_a_run_of_a_lazyconfig_leaves_alone(tmp_path, arguments, capsys):
    """test_matrix.py tests training, resuming and the stock model's weights."""
    data, keys = arguments
    start = ["train.max_iter=2", "train.init_checkpoint=null"]  # null: random weights
    assert main(["--config", FCOS, *data, *keys, *start]) == 0
    trained = capsys.readouterr().out
    assert "Contents of args.config_file" not in trained and "Environment info" in trained

    damaged, other = tmp_path / "damaged.pth", tmp_path / "other"
    damaged.write_bytes(b"no checkpoint")
    words = [*data, *keys, f"train.init_checkpoint={damaged}", f"train.output_dir={other}"]
    assert "damaged.pth cannot be read" in refused(capsys, main, "--config", FCOS, *words)
    words[-2] = start[-1]
    assert call(main, "--config", FCOS, *words, "train.max_iter=1") == 0  # without --fresh

    words = ["--config", FCOS, *data, *keys, "train.max_iter=3"]
    assert "holds another run" in refused(capsys, main, *words)
    for flag in ("--resume", "--eval-only"):
        error = refused(capsys, main, flag, "--classes", "star,triangle,square,circle", *words)
        assert error.startswith(f"error: {flag}: class 1 is 'circle' in the run in {tmp_path}/out")
        assert error.endswith("--classes circle,square,triangle,star\n")
    assert call(main, "--resume", *words[:-1], "train.max_iter=2", "optimizer.lr=0.5") == 0
    assert "optimizer.lr 0.5 is ignored: the resumed run keeps 0.01" in capsys.readouterr().out


OWN_CONFIG = f"""
from detectron2.config import LazyCall as L, LazyConfig
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import build_detection_test_loader, build_detection_train_loader
cfg = LazyConfig.load("{CONFIGS.parent / FCOS}")
model, optimizer, lr_multiplier, train = cfg.model, cfg.optimizer, cfg.lr_multiplier, cfg.train
dataloader = cfg.dataloader
"""
OWN_LOADER = """
mapper = dataloader.train.mapper
def own_loader(name, mapper):
    data = DatasetCatalog.get(name)
    return build_detection_train_loader(data, mapper=mapper, total_batch_size=2, num_workers=0)
dataloader.train = L(own_loader)(name="lz_train", mapper=mapper)
"""


def test_a_loader_and_functions_of_ones_own(tmp_path, arguments, capsys):
    """A list of one test set, and arguments that the config does not list, work too."""
    data, keys = arguments
    config = tmp_path / "own.py"
    config.write_text(OWN_CONFIG + OWN_LOADER)
    keys = [keys[-1], "dataloader.test.dataset.names=[lz_val]", "optimizer.nesterov=True"]
    words = ["--config", config, *data, *keys, "train.max_iter=1"]
    assert call(main, *words) == 0
    text = capsys.readouterr().out
    assert "--resume its data start from" in text and re.search(r"\| +AP50 ", text)
    assert call(predict, "--run", tmp_path / "out", "--output", tmp_path / "found",
                tmp_path / "data" / "val") == 0  # fmt: skip
    for wrong, message in (
        ("optimizer.nestrov=True", "unknown config key optimizer.nestrov"),
        ("dataloader.test.dataset.names=[lz_val,lz_train]", "must be one dataset in a LazyConfig"),
        ("train.calibrate=train", "train.calibrate train needs a training set, but"),
    ):
        assert message in refused(capsys, main, *words, wrong)


OWN_TEST_LOADER = """
def own_loader(name):
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    return build_detection_test_loader(DatasetCatalog.get(name), mapper=mapper)
dataloader.test = L(own_loader)(name="lz_val")
dataloader.evaluator.dataset_name = "lz_val"
"""


def test_a_test_loader_without_a_mapper(tmp_path, arguments, capsys):
    """Evaluation works. Features that need the mapper are refused before a training begins."""
    data, keys = arguments
    config = tmp_path / "own.py"
    config.write_text(OWN_CONFIG + OWN_TEST_LOADER)
    words = ["--config", config, *data, keys[0], *keys[2:], "train.max_iter=1"]
    error = refused(capsys, main, *words, "train.calibrate=train")
    assert "dataloader.test.mapper is missing" in error
    assert call(main, *words) == 0
    out, image = tmp_path / "out", tmp_path / "data" / "val"
    error = refused(capsys, predict, "--run", out, "--output", tmp_path / "found", image)
    assert "dataloader.test.mapper is missing" in error


OWN_EVALUATOR = """
from detectron2.evaluation import DatasetEvaluator
class Mine(DatasetEvaluator):
    def process(self, inputs, outputs): pass
    def evaluate(self): return {"mine": {"score": 1.0}}
dataloader.evaluator = L(Mine)()
train.eval_period = 1
"""


@pytest.mark.parametrize(
    "line", ["del dataloader.evaluator", "dataloader.test = None", "del dataloader.test"]
)
def test_a_config_without_an_evaluation(line, tmp_path, arguments):
    data, keys = arguments
    config = tmp_path / "own.py"
    config.write_text(f"{OWN_CONFIG}del cfg\n{line}\ntrain.eval_period = 1\n")
    keys = [key for key in keys if "test" not in line or not key.startswith("dataloader.test.")]
    assert call(main, "--config", config, *data, *keys, "train.max_iter=1") == 0
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_the_metric_of_an_evaluator_of_ones_own(tmp_path, arguments):
    data, keys = arguments
    config = tmp_path / "own.py"
    config.write_text(OWN_CONFIG + OWN_EVALUATOR)
    words = ["--config", config, *data, *keys, "train.max_iter=1", "train.best_metric=mine/score"]
    assert call(main, *words) == 0
    assert best_of(tmp_path / "out")["best"]["value"] == 1


def test_a_test_mapper_that_is_no_datasetmapper(tmp_path, capsys):
    config = tmp_path / "own.py"
    config.write_text(f"{OWN_CONFIG}\ndataloader.test.mapper = L(str)()\n")
    words = ["--config", config, "--weights", config, CONFIGS.parent / "docs" / "predict.jpg"]
    error = refused(capsys, predict, *words, "--output", tmp_path / "found")
    assert "dataloader.test.mapper is a str: derive it from detectron2.data.DatasetM" in error


def test_the_best_evaluation_is_kept_and_ends_the_run(tmp_path, catalogs):
    """With a learning rate near 0, no evaluation is better than the first."""
    register_coco_instances("lazy_shapes", {}, *write_coco(tmp_path / "data"))
    (tmp_path / "out").mkdir()  # as default_setup does

    def run():
        cfg = lazy_twin("faster_rcnn_rambo.py", "lazy_shapes", tmp_path / "out")
        cfg.optimizer.lr = 1e-30
        cfg.model.roi_heads.num_classes = 4
        cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
        cfg.dataloader.evaluator.dataset_name = "lazy_shapes"
        cfg.train.update(max_iter=12, eval_period=2, patience=2)
        return LazyRun(cfg)

    first = run()
    first.fit(resume=False)
    kept = best_of(tmp_path / "out")
    assert list(kept["evaluations"]) == ["1", "3", "5"] and kept["best"]["iteration"] == 1
    for name, iteration in (("model_best", 1), ("model_final", 5)):
        saved = torch.load(tmp_path / "out" / f"{name}.pth", weights_only=False)
        assert saved["iteration"] == iteration
    assert "best bbox/AP: " in first.evaluations.summary()
    again = run()
    assert set(again.fit(resume=True)) == {"bbox"}  # stays ended
    assert best_of(tmp_path / "out") == kept


def test_the_examples_of_the_help_are_of_a_lazyconfig(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    examples = capsys.readouterr().out.partition("Examples:")[2]
    assert "optimizer.lr=0.001" in examples and "SOLVER" not in examples


def test_nothing_else_is_printed(tmp_path):
    """The test needs a new process, in which the first import of a module may warn."""
    done = python(
        "tools/lazyconfig_train_net.py", "--eval-only", "--config",
        "configs/lazy/retinanet_rambo.py", f"train.output_dir={tmp_path}/none",
        "dataloader.train.dataset.names=rambo_shapes_train",
        "dataloader.test.dataset.names=rambo_shapes_val",
        PYTHONWARNINGS="ignore:CUDA initialization",  # torch warns without a GPU
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --eval-only") and done.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("part, lacking", [("mask", "has no mask"), ("keypoint", "no keypoints")])
def test_a_model_with_more_than_boxes_needs_data_that_have_it(part, lacking, tmp_path, catalogs):
    file, images = write_coco(tmp_path, 2)
    words = ["--config", str(CONFIGS / "lazy" / "faster_rcnn_rambo.py"), "--register-coco", "own",
             file, images, "dataloader.train.dataset.names=own",
             "dataloader.test.dataset.names=own"]  # fmt: skip
    load_lazy_config(parse_args(words, lazy=True))
    DatasetCatalog.remove("own")
    head = f"model.roi_heads.{part}_head"
    with pytest.raises(InputError, match=f"{head} is set, but .*{lacking}"):
        load_lazy_config(parse_args([*words, f"{head}={{a: 1}}"], lazy=True))
