"""How a comparison plans its runs from the command line."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from rambo_det.cli.compare import main, parse_args, plan_of
from rambo_det.engine.arguments import parse_args as parse_train
from rambo_det.engine.setup import merged_config
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

from .command_line import refusal
from .models import write_coco, write_voc
from .strategies import same

QUICK = "configs/quickstart/"
FASTER = f"{QUICK}faster_rcnn_ce.yaml"
PAIRS = [
    ("faster_rcnn_ce.yaml", "faster_rcnn_rambo.yaml", "ce,rambo"),
    ("cascade_rcnn_ce.yaml", "cascade_rcnn_rambo.yaml", "ce,rambo"),
    ("faster_rcnn_c4_ce.yaml", "faster_rcnn_c4_rambo.yaml", "ce,rambo"),
    ("retinanet_focal.yaml", "retinanet_rambo.yaml", "focal,rambo"),
]


def plan(config, *words):
    return plan_of(parse_args(["--config", QUICK + config, *map(str, words)]))


def config(run):
    """Returns the config with which a run's training starts, except for its data."""
    return merged_config(parse_train(list(run.command[3:])))


@pytest.mark.parametrize(("stock", "rambo", "losses"), PAIRS)
def test_either_config_of_a_pair_gives_every_loss_and_one_start(stock, rambo, losses, catalogs):
    words = ["--losses", losses, "--seeds", "2,5", "MODEL.DEVICE", "cpu"]
    runs, others = (plan(file, *words).runs for file in (stock, rambo))
    for a, b in zip(runs, others, strict=True):
        assert a.settings == b.settings and (a.variant, a.seed) == (b.variant, b.seed)
    assert [run.seed for run in runs] == [2, 2, 5, 5]
    states = []
    for cfg in map(config, others[:2]):
        seed_all_rng(cfg.SEED)  # as Detectron2's default_setup does
        states.append(build_model(cfg).state_dict())
    assert same(*states)


def test_every_loss_sees_the_same_images_in_the_same_order(tmp_path, catalogs):
    file, images = write_coco(tmp_path, 8)
    found = plan(
        "faster_rcnn_ce.yaml", "--losses", "ce,rambo", "--seeds", 2,
        "--data", f"o=coco:{file}:{images}:{file}:{images}",
    )  # fmt: skip
    orders = []
    for run in found.runs:
        batches = iter(RamboTrainer.build_train_loader(config(run)))
        seen = [item for _ in range(3) for item in next(batches)]
        orders.append([(x["image_id"], x["image"].flatten().tolist()) for x in seen])
    assert orders[0] == orders[1] != orders[2] == orders[3]


@pytest.mark.parametrize(
    ("file", "losses", "key", "values"),
    [
        ("faster_rcnn_rambo_rpn.yaml", "ce,rambo", "PROPOSAL_GENERATOR.NAME", ["RPN", "RamboRPN"]),
        ("retinanet_focal.yaml", "focal,rambo", "RETINANET.SCORE_THRESH_TEST", [0.0, 0.0]),
    ],
)
def test_keys_that_go_with_a_loss(file, losses, key, values, catalogs):
    found = plan(file, "--losses", losses, "--seeds", 1)
    assert [run.settings[f"MODEL.{key}"] for run in found.runs] == values


@pytest.mark.parametrize(
    ("text", "seeds"), [("2", [0, 1]), ("3,7", [3, 7]), ("7,", [7]), ("0,", [0]), ("3,7,", [3, 7])]
)
def test_seeds(text, seeds):
    assert parse_args(["--config", FASTER, "--seeds", text]).seeds == seeds


def test_variants_and_grids(catalogs):
    found = plan(
        "faster_rcnn_ce.yaml", "--losses", "ce",
        "--variant", "wide=rambo MODEL.RAMBO.MARGIN 2 SOLVER.BASE_LR 0.02",
        "--grid", "m=rambo MODEL.RAMBO.MARGIN 0,0.5 MODEL.RAMBO.BETA 0,1",
        "--seeds", 1, "SOLVER.BASE_LR", "0.5",
    )  # fmt: skip
    runs = {run.variant: run.settings for run in found.runs}
    assert list(runs) == ["ce", "wide", "m_margin-0_beta-0", "m_margin-0_beta-1",
                          "m_margin-0.5_beta-0", "m_margin-0.5_beta-1"]  # fmt: skip
    assert runs["ce"]["SOLVER.BASE_LR"] == 0.5 and runs["wide"]["SOLVER.BASE_LR"] == 0.02
    last = runs["m_margin-0.5_beta-1"]
    assert (last["MODEL.RAMBO.MARGIN"], last["MODEL.RAMBO.BETA"]) == (0.5, 1.0)


def test_values_of_a_grid_may_hold_commas_and_slashes(catalogs, tmp_path, monkeypatch):
    for file in (tmp_path / "a" / "b.pth", tmp_path / "here" / "x"):
        file.parent.mkdir()
        file.touch()
    monkeypatch.chdir(tmp_path / "here")
    found = plan(
        "faster_rcnn_ce.yaml", "--seeds", 1, "--out", "there",
        "--grid", "g=ce INPUT.MIN_SIZE_TRAIN (64,96),(80,) MODEL.WEIGHTS ../a/b.pth,x",
        "--grid", """q=ce DATASETS.PROPOSAL_FILES_TEST "('a,b','c')",() """,
    )  # fmt: skip
    runs = {run.variant: run for run in found.runs}
    assert list(runs) == [
        "g_min_size_train--64-96-_weights-..-a-b.pth", "g_min_size_train--64-96-_weights-x",
        "g_min_size_train--80--_weights-..-a-b.pth", "g_min_size_train--80--_weights-x",
        "q_proposal_files_test---a-b---c--", "q_proposal_files_test---",
    ]  # fmt: skip
    first = runs["g_min_size_train--64-96-_weights-..-a-b.pth"]
    assert first.settings["INPUT.MIN_SIZE_TRAIN"] == [64, 96]
    assert first.settings["MODEL.WEIGHTS"] == "../a/b.pth"
    files = runs["q_proposal_files_test---a-b---c--"].settings["DATASETS.PROPOSAL_FILES_TEST"]
    assert files == ["a,b", "c"]
    assert {run.folder.parts[:3] for run in found.runs} == {("there", "runs", "rambo_shapes_val")}
    assert {len(run.folder.parts) for run in found.runs} == {5}


def test_data_sets_with_keys_of_their_own(tmp_path, catalogs):
    train, images = write_coco(tmp_path / "coco", 3)
    for split in ("train", "val"):
        write_voc(tmp_path / "voc", split, {f"{split}0": [("cat", (1, 1, 20, 20), 0)]})
    found = plan(
        "real_data_ce.yaml", "--losses", "ce,rambo", "--seeds", 1,
        "--data", f"c=coco:{train}:{images}:{train}:{images} SOLVER.MAX_ITER 7",
        "--data", f"v=voc:{tmp_path / 'voc'}:train:val",
        "--data", f"quick={FASTER}",
    )  # fmt: skip
    assert found.test_sets == {"c": "c_val", "v": "v_val", "quick": "rambo_shapes_val"}
    lengths = {run.data: run.iterations for run in found.runs}
    assert lengths == {"c": 7, "v": 300, "quick": 1000}
    classes = {(r.data, r.settings["MODEL.ROI_HEADS.NUM_CLASSES"]) for r in found.runs}
    assert len(classes) == 3  # both losses of a dataset have the same number
    assert found.runs[0].folder.parts[-4:] == ("runs", "c", "ce", "seed0")
    assert "data c_val" in found.runs[0].settings and "data x" not in found.runs[-1].settings


def test_data_of_a_users_own_code_are_told_apart(tmp_path, catalogs):
    register_coco_instances("imp_train", {}, *write_coco(tmp_path, 8))
    DatasetCatalog.get("imp_train")
    words = ["--losses", "ce", "--seeds", 1, "DATASETS.TRAIN", "('imp_train',)"]
    runs = [plan("faster_rcnn_ce.yaml", "--hold-out", n, *words).runs[0] for n in (2, 4, 4)]
    digests = [run.settings["data imp_train_fit"] for run in runs]
    assert digests[0] != digests[1] == digests[2]


def test_all_losses_are_measured_on_the_same_data(catalogs):
    other = "b=rambo DATASETS.TEST \"('rambo_shapes_train',)\""
    with pytest.raises(InputError, match="b: DATASETS.TEST is rambo_shapes_train, but the other"):
        plan("faster_rcnn_ce.yaml", "--losses", "ce", "--variant", other)


def test_images_that_are_trained_and_tested_on_are_counted(tmp_path, catalogs):
    train, images = write_coco(tmp_path / "coco", 6)
    val, others = write_coco(tmp_path / "coco", 2, "val")
    voc = tmp_path / "voc"
    objects = [("cat", (1, 1, 20, 20), 0)]
    write_voc(voc, "train", {"a": objects, "b": objects})
    write_voc(voc, "part", {"b": objects})
    (tmp_path / "link").symlink_to(images)
    one = ["--seeds", 1, "--register-coco"]
    for words, expected in (
        (
            ["--seeds", 1, "--data", f"all=coco:{train}:{images}:{train}:{tmp_path / 'link'}",
             "--data", f"apart=coco:{train}:{images}:{val}:{others}",
             "--data", f"part=voc:{voc}:train:part", "--data", f"drawn={FASTER}"],
            {"all": 6, "apart": 0, "part": 1, "drawn": 0},
        ),
        ([*one, "o", train, images, "--hold-out", 3, "DATASETS.TRAIN", "('o',)"],
         {"o_heldout": 0}),
        (["--seeds", 1, "--hold-out", 3, "--data", f"c=coco:{train}:{images}:{train}:{images}"],
         {"c": 0}),
        ([*one, "same", train, images, "DATASETS.TRAIN", "('same',)", "DATASETS.TEST", "('same',)"],
         {"same": 6}),
        (["--seeds", 1, "--data", f"v=coco:{train}:{images}:{val}:{others}", "--losses", "ce",
          "--variant", "cheat=ce DATASETS.TRAIN \"('v_val',)\""],
         {"v": 2}),
    ):  # fmt: skip
        assert plan("real_data_ce.yaml", *words).num_test_images_in_train == expected


def test_a_warning_says_what_is_trained_and_tested_on(tmp_path, catalogs, capsys):
    file, images = write_coco(tmp_path, 6)
    words = ["--config", QUICK + "real_data_ce.yaml", "--out", file]  # a file, not a folder
    assert main([*words, "--data", f"o=coco:{file}:{images}:{file}:{images}"]) == 2
    warning, error = capsys.readouterr().err.splitlines()[-2:]
    assert warning.startswith("warning: o: 6 images are in both the training set and the test set")
    assert error == f"error: --out {file} is not a folder"
    assert main([*words[:-1], f"{file}/out"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {file}/out cannot be created: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--losses", "ce,hinge"], "unknown loss 'hinge', choose from ce, focal, rambo"),
        (["--losses", "ce,ce"], "two variants have the name ce"),
        (["--losses", "rambo", "--variant", "RaMBO=ce"], "two variants have the name RaMBO"),
        (["--losses", "ce,rambo", "MODEL.META_ARCHITECTURE", "RetinaNet"],
         "--losses ce: .*RetinaNet.* supports only focal and rambo"),
        (["--losses", "focal,rambo"], "--losses focal: .*StandardROIHeads supports only ce"),
        (["--variant", "a=ce KEY"], "'KEY' has no value"),
        (["--variant", "a/b=ce"], "a name may contain only letters"),
        (["--variant", "..=ce"], "a name may contain only letters"),
        (["--grid", "../a=ce SOLVER.BASE_LR 1,2"], "a name may contain only letters"),
        (["--variant", "just-a-name"], "NAME=LOSS KEY VALUE"),
        (["--data", "q=configs/nope.yaml"], "--data 'q=configs/nope.yaml': .*: no such file"),
        (["--data", "a=voc:x"], "voc:ROOT:TRAIN:VAL"),
        (["--data", "a=voc:x:y:z", "--classes", "b"], "--data cannot be combined"),
        (["--data", f"a={FASTER}", "--data", f"a={FASTER}"], "two datasets have the name a"),
        (["--data", "a=voc:x:y:z", "--data", "a=voc:x:y:z"], "have the name a: rename one"),
        (["--grid", f"g=ce MODEL.WEIGHTS {'w' * 99}"], "name g_w.* 109 char.* --variant NAME"),
        (["--seeds", "4294967296,"], "--seeds 4294967296,: seeds must be below 2"),
        (["RAMBO_TRAIN.CALIBRATE", "nope"], "RAMBO_TRAIN.CALIBRATE: dataset nope is not"),
        (["RAMBO_TRAIN.CALIBRATE", "rambo_shapes_val"], "CALIBRATE rambo_shapes_val: .* use train"),
        (["--seeds", "20261201"], "use at most 1000; write '20261201,' if it is one seed"),
        (["--seeds", "0"], "--seeds 0: use a number >= 1"),
        (["--seeds", "1,1"], "different seeds"),
        (["--seeds", ","], "different seeds"),
        (["--jobs", "0"], "--jobs must be >= 1"),
        (["MODEL.WEIGHTS", "/nope.pth"], "MODEL.WEIGHTS /nope.pth: no such file"),
        (["SEED", "3"], "SEED is set per run: use --seeds"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "2"], "SOLVER.REFERENCE_WORLD_SIZE must be 0"),
        (["MODEL.RAMBO.MARGIN", "-1"], "MODEL.RAMBO.MARGIN must be >= 0"),
        (["MODEL.ROI_HEADS.NAME", "PointRendROIHeads"], "losses can be swapped only in"),
        (["DATASETS.TEST", "('a','b')"], "is not registered"),
        (["DATASETS.TEST", "('rambo_shapes_train','rambo_shapes_val')"], "must name one dataset"),
    ],
)  # fmt: skip
def test_mistakes_are_named(words, message, catalogs):
    with refusal(message):
        plan("faster_rcnn_ce.yaml", *words)


def test_the_classes_of_a_calibration_are_those_of_the_training(catalogs):
    DatasetCatalog.register("cats", list)
    MetadataCatalog.get("cats").thing_classes = ["cat"]
    with refusal("RAMBO_TRAIN.CALIBRATE: class 1 is 'circle' in .* and 'cat' in cats"):
        plan("faster_rcnn_ce.yaml", "RAMBO_TRAIN.CALIBRATE", "cats")
