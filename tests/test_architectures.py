"""Every architecture: trains, evaluates, resumes, and leaves no trace in the stock one."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Boxes
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rambo_det.engine.trainer import RamboTrainer

from .architectures import (
    ARCHITECTURES,
    assert_same_predictions,
    config,
    memories,
    register_drawn,
)
from .models import training_inputs

try:
    from detectron2.export import TracingAdapter, scripting_with_instances
except ImportError:  # v0.5's needs caffe2, which no current torch has
    TracingAdapter = None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    name = register_drawn(tmp_path_factory.mktemp("drawn"), "drawn")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class Run:
    """Two iterations of an architecture."""

    def __init__(self, name, data, folder):
        self.cfg = config(name, False, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 2)
        self.cfg.DATASETS.TRAIN = self.cfg.DATASETS.TEST = (data,)
        seed_all_rng(3)
        self.trainer = RamboTrainer(self.cfg)
        self.before = {k: v.clone() for k, v in self.trainer.model.state_dict().items()}
        self.trainer.train()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def run(request, drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, Run(request.param, drawn, folder)


def stock_model(name, checkpoint=None):
    model = build_model(config(name, stock=True))
    if checkpoint:
        DetectionCheckpointer(model).load(str(checkpoint))
    return model


def test_it_trains_and_evaluates(run):
    name, run = run
    after = run.trainer.model.state_dict()
    scores = [k for k in after if k.endswith(("cls_score.weight", "objectness_logits.weight"))]
    assert scores and all(not torch.equal(after[k], run.before[k]) for k in scores)
    found = list(memories(run.trainer.model))
    assert len(found) == ARCHITECTURES[name].memories
    assert [int(memory.written) for memory in found] == [2] * len(found)
    results = run.trainer._last_eval_results
    assert 0 <= results["bbox"]["AP"] <= 100
    assert ("segm" in results) == (name == "mask")
    assert ("keypoints" in results) == (name == "keypoint")


def test_scalars(run):
    name, run = run
    latest = run.trainer.storage.latest()
    prefixes = {"cascade": [f"rambo/stage{i}" for i in range(3)], "rpn": ["rambo", "rambo/rpn"]}
    for prefix in prefixes.get(name, ["rambo"]):
        assert 0 <= latest[f"{prefix}/AP"][0] < 1
    assert "rambo/rpn/AP-object" in latest or name != "rpn"
    assert not any("/rambo/" in key for key in latest)


def test_its_checkpoint_is_the_stock_models(run):
    name, run = run
    file = run.trainer.cfg.OUTPUT_DIR + "/model_final.pth"
    stock = stock_model(name)
    weights = torch.load(file, weights_only=False)["model"]
    incompatible = stock.load_state_dict(weights)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    assert_same_predictions(run.trainer.model, stock_model(name, file), training_inputs())
    run.trainer.model.train()


def test_resume_brings_the_memory_back(run):
    _, run = run
    cfg = run.cfg.clone()
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 3, ()
    resumed = RamboTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    pairs = zip(memories(resumed.model), memories(run.trainer.model), strict=True)
    for memory, before in pairs:
        assert all(torch.equal(memory.get_buffer(k), v) for k, v in before.named_buffers())
    resumed.before_train()  # as train() does, which would write over the checkpoint
    resumed.iter = 2
    with EventStorage(2) as resumed.storage:
        resumed.before_step()
        resumed.run_step()
    assert all(int(memory.written) == 3 for memory in memories(resumed.model))


def test_initial_weights_are_the_stock_models(run):
    name, _ = run
    states = []
    for stock in (True, False):
        seed_all_rng(5)
        states.append(build_model(config(name, stock)).state_dict())
        states[-1]["stream"] = torch.rand(3)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())


def test_test_time_augmentation(run):
    name, run = run
    if name != "faster_rcnn":
        pytest.skip("Detectron2's test-time augmentation is for R-CNNs: shown for Faster R-CNN")
    cfg = run.cfg.clone()
    cfg.TEST.AUG = CfgNode({"ENABLED": True, "MIN_SIZES": (64, 96), "MAX_SIZE": 96, "FLIP": True})
    stock = stock_model(name, run.trainer.cfg.OUTPUT_DIR + "/model_final.pth")
    models = [GeneralizedRCNNWithTTA(cfg, m.eval()) for m in (run.trainer.model, stock)]
    inputs = training_inputs(1)
    inputs[0]["image"] = inputs[0]["image"].byte()
    assert_same_predictions(*models, inputs)
    run.trainer.model.train()


def _traced(model, image):
    def infer(model, inputs):
        if hasattr(model, "roi_heads"):
            return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]
        return model(inputs)

    adapter = TracingAdapter(model.eval(), [{"image": image}], infer)
    with torch.no_grad():
        return torch.jit.trace(adapter, (image,), check_trace=False)(image)


def test_tracing_works_as_the_stock_models(run):
    name, run = run
    if TracingAdapter is None:
        pytest.skip("this Detectron2's export needs caffe2: no model of it can be traced")
    if name in ("mask", "keypoint", "rpn"):
        pytest.skip("differs from faster_rcnn in nothing that inference runs for the loss")
    stock = stock_model(name, run.trainer.cfg.OUTPUT_DIR + "/model_final.pth")
    image = training_inputs(1)[0]["image"]
    theirs, ours = _traced(stock, image), _traced(run.trainer.model, image)
    run.trainer.model.train()
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_scripting_works_as_the_stock_models(run):
    name, run = run
    if TracingAdapter is None:
        pytest.skip("this Detectron2's export needs caffe2: no model of it can be scripted")
    if name not in ("faster_rcnn", "retinanet", "rpn"):
        pytest.skip("Detectron2 does not script its stock twin, or as faster_rcnn")
    fields = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor, "pred_boxes": Boxes}
    fields |= {"scores": torch.Tensor, "pred_classes": torch.Tensor}
    stock = stock_model(name, run.trainer.cfg.OUTPUT_DIR + "/model_final.pth")
    image, results = training_inputs(1)[0]["image"], []
    for model in (stock, run.trainer.model):
        scripted = scripting_with_instances(model.eval(), fields)
        call = scripted.inference if hasattr(model, "roi_heads") else scripted.forward
        arguments = {"do_postprocess": False} if hasattr(model, "roi_heads") else {}
        with torch.no_grad():
            results.append(call([{"image": image}], **arguments)[0])
    run.trainer.model.train()
    assert len(results[0].scores) > 0
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)
    assert torch.equal(results[0].scores, results[1].scores)
