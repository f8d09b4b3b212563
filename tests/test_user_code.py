"""``--import``: every command can use a user's backbone, and the timm example works."""

import json
import shutil
import sys

import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, build_model

from rambo_det.cli.compare import parse_args, plan_of
from rambo_det.cli.predict import main as predict
from rambo_det.cli.train import main as train
from rambo_det.engine.user_code import import_user_code, new_config
from rambo_det.errors import InputError

from .command_line import refused, registered
from .forked import REPOSITORY
from .models import CONFIGS, QUICKSTART, THIN

CODE = """
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone


def add_config(cfg):
    cfg.MODEL.MINE = CfgNode({{"WIDTH": 1}})


@BACKBONE_REGISTRY.register()
def {name}(cfg, input_shape):
    assert cfg.MODEL.MINE.WIDTH == 3
    return build_resnet_backbone(cfg, input_shape)
"""


@pytest.fixture
def own(finished_run, tmp_path, request):
    """Returns a file with a backbone, and the flags and keys of a command that uses it."""
    file, name = tmp_path / "mine.py", f"build_{request.node.name.replace('-', '_').split('[')[0]}"
    file.write_text(CODE.format(name=name))
    data, keys = registered(finished_run)
    keys += [*THIN, "SOLVER.MAX_ITER", 1, "MODEL.BACKBONE.NAME", name, "MODEL.MINE.WIDTH", 3]
    words = ["--import", file, "--config", QUICKSTART, *data]
    return file, [str(x) for x in words], [str(x) for x in keys]


def test_a_run_remembers_the_code_that_it_needs(own, finished_run, tmp_path, catalogs, capsys):
    file, words, keys = own
    out = str(tmp_path / "out")
    assert train([*words, *keys, "OUTPUT_DIR", out]) == 0
    assert json.loads((tmp_path / "out" / "data.json").read_text())["imports"] == [str(file)]
    found = ["--run", out, "--output", str(tmp_path / "found"), str(finished_run / "val")]
    assert predict(found) == 0
    shutil.move(file, tmp_path / "gone.py")
    import_user_code([str(file)])  # a process imports a file only once
    with pytest.raises(InputError, match="no such file"):
        import_user_code([str(tmp_path / "other.py")])


def test_every_training_of_a_comparison_imports_it(own, tmp_path, catalogs):
    file, words, keys = own
    plan = plan_of(parse_args([*words, "--out", str(tmp_path / "c"), "--seeds", "1", *keys]))
    assert {run.command[3:5] for run in plan.runs} == {("--import", str(file))}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "--import {file}: no such file"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
    ],
)
def test_code_that_cannot_be_imported_is_one_line(code, message, tmp_path, capsys):
    file = tmp_path / "broken.py"
    if code is not None:
        file.write_text(code)
    error = refused(capsys, train, "--import", file, "--config", QUICKSTART, "OUTPUT_DIR", tmp_path)
    assert message.format(file=file) in error


@pytest.mark.parametrize("name", ["voc07_rambo", "voc07_retinanet_rambo"])
def test_the_example_of_a_timm_backbone(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    import_user_code([str(REPOSITORY / "examples" / "timm_backbone.py")])
    cfg = new_config()
    cfg.merge_from_file(str(CONFIGS / "evidence" / f"{name}.yaml"))
    cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    model = build_model(cfg).eval()
    frozen = [p.requires_grad for p in model.backbone.bottom_up.parameters()]
    assert frozen == sorted(frozen) and not frozen[0] and frozen[-1]
    # The features equal those of timm, in training mode too.
    net = timm.create_model(cfg.MODEL.TIMM.NAME, features_only=True, pretrained=False).eval()
    net.load_state_dict(model.backbone.bottom_up.net.state_dict(), strict=False)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        features = model.backbone(image)
        found, wanted = model.train().backbone.bottom_up(image), net(image)[-3:]
    assert [f.shape[-1] for f in features.values()] == [16, 8, 4, 2]
    for one, other in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, stages",
    # convnext_atto calls the module stages.0 stages_0; act1 of resnet18 has no parameters.
    [
        ("resnet18", ["conv1", "bn1", "layer1"]),
        ("convnext_atto", ["stem_", "stages_0", "stages_1"]),
    ],
)
def test_the_first_stages_of_any_timm_model_are_frozen(name, stages):
    pytest.importorskip("timm", reason="timm is not installed")
    import_user_code([str(REPOSITORY / "examples" / "timm_backbone.py")])
    cfg = new_config()
    cfg.MODEL.TIMM.NAME = name
    build = BACKBONE_REGISTRY.get("build_timm_fpn_backbone")
    net = build(cfg, None).bottom_up.net  # FREEZE_AT is 2
    frozen = [key for key, value in net.named_parameters() if not value.requires_grad]
    assert all(
        key.startswith(tuple(stages)) == (key in frozen) for key, _ in net.named_parameters()
    )
    cfg.MODEL.BACKBONE.FREEZE_AT = 9
    with pytest.raises(ValueError, match="FREEZE_AT 9: .* has only . stages"):
        build(cfg, None)


def test_weights_of_another_library_come_in_the_same_order():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    import_user_code([str(REPOSITORY / "examples" / "timm_backbone.py")])
    module = BACKBONE_REGISTRY.get("build_timm_fpn_backbone").__module__
    load_weights = sys.modules[module].load_weights
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False)
    weights = {f"other{i}": torch.rand(v.shape).to(v) for i, v in
               enumerate(net.state_dict().values())}  # fmt: skip
    load_weights(net, {**weights, "classifier": torch.zeros(3)})
    pairs = zip(net.state_dict().values(), weights.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match="another model"):
        load_weights(net, dict(list(weights.items())[1:]))
