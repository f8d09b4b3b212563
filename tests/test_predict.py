"""tools/predict.py as a user runs it, on real runs, image and video files, and a stream."""

import functools
import http.server
import json
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from rambo_det.cli.predict import default_threshold, main, parse_args, silence_libraries
from rambo_det.cli.sources import find_sources
from rambo_det.data import register_datasets
from rambo_det.data.drawing import CLASSES, draw_image
from rambo_det.engine.detector import Detector
from rambo_det.engine.saved_model import find_model, load_ground_truth
from rambo_det.errors import InputError
from rambo_det.evaluation.pictures import delayed_interrupt, draw_detections

from .command_line import call, disk_full, refused
from .forked import background, wait_until
from .models import QUICKSTART, small_cfg, write_broken_image, write_coco


def test_an_object_with_the_id_0_can_be_found(tmp_path):
    """COCOeval takes a match with the id 0 for none."""
    file = Path(write_coco(tmp_path, 2)[0])
    content = json.loads(file.read_text())
    content["annotations"][0]["id"] = 0
    file.write_text(json.dumps(content))
    assert min(load_ground_truth(str(file)).anns) == 1


@pytest.fixture(scope="module")
def run(finished_run):
    """Adds a video to the folder of the finished run, and returns the folder."""
    torch.set_num_threads(1)
    # FFmpeg reads this once per process, at its first use, which is here before the tool runs.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    film(finished_run / "film.avi", [draw_image("val", index)[0] for index in range(5)])
    return finished_run


def film(file, frames):
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 96))
    for frame in frames:
        writer.write(frame)
    writer.release()


def predict(run, *arguments):
    return call(main, "--run", run / "out", *arguments)


def results_of(folder):
    results = json.loads((folder / "results.json").read_text())
    return COCO(str(folder / "images.json")), results


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("name", ["细胞", "$$"], ids=["no glyphs", "a formula"])
def test_names_that_matplotlib_would_stumble_over(name):
    found = Instances((96, 96))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 60.0]]))
    found.pred_classes = torch.tensor([0])
    draw_detections(draw_image("val", 0)[0], found, Metadata(thing_classes=[name]))


def test_pictures_of_a_folder_and_what_is_hidden(run, tmp_path, capsys, catalogs):
    out = tmp_path / "out"
    (run / "val" / "notes.txt").write_text("no image")
    assert predict(run, run / "val", "--output", out) == 0
    text = capsys.readouterr().out
    assert "the best F1 on own_val" in text, "the annotations of the training were not found"
    truth, results = results_of(out)
    assert [c["name"] for c in truth.dataset["categories"]] == list(CLASSES)
    assert {r["category_id"] for r in results} <= {1, 2, 3, 4} and len(results) > 10
    assert len(truth.loadRes(results_of(out)[1]).anns) == len(results)
    assert f"all {len(results)} detections: " in text
    drawn, hidden = (int(text.split(f"{x}drawn: ")[1].split()[0]) for x in ("\n", "not "))
    assert drawn + hidden == len(results) and drawn > 0 and hidden > 0
    plain = cv2.imread(str(run / "val" / "0000.png"))
    picture = cv2.imread(str(out / "0000.png"))
    enlarged = cv2.resize(plain, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    assert picture.shape == (480, 480, 3) and (picture != enlarged).any()
    assert sorted(p.name for p in out.iterdir()) == [
        "0000.png", "0001.png", "0002.png", "images.json", "overview.jpg", "results.json",
    ]  # fmt: skip

    before = {p: p.read_bytes() for p in out.iterdir()}
    error = refused(capsys, main, "--run", run / "out", run / "val", "--output", out)
    assert "already exists (and 5 more): use --overwrite" in error
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    assert predict(run, run / "val", "--output", out, "--overwrite", "--threshold", "1") == 0
    assert "drawn: 0 " in capsys.readouterr().out
    assert (cv2.imread(str(out / "0000.png")) == enlarged).all()
    assert results_of(out)[1] == results


def test_detections_are_those_of_the_evaluation(run, catalogs):
    """The boxes and scores equal those of the evaluation at the end of the training."""
    detector = Detector(find_model(str(run / "out"), None, None))
    stored = json.loads((run / "out/inference/coco_instances_results.json").read_text())
    found = detector(cv2.imread(str(run / "val" / "0001.png")))
    stored = sorted((r for r in stored if r["image_id"] == 2), key=lambda r: -r["score"])
    boxes = found.pred_boxes.tensor.numpy()
    want = np.array([r["bbox"] for r in stored])
    np.testing.assert_allclose(found.scores, [r["score"] for r in stored], atol=1e-5)
    np.testing.assert_allclose(boxes[:, :2], want[:, :2], atol=1e-3)
    assert [r["category_id"] - 1 for r in stored] == found.pred_classes.tolist()


def test_an_input_is_never_overwritten(run, tmp_path, capsys, catalogs):
    shutil.copytree(run / "val", tmp_path / "in")
    before = {p: p.read_bytes() for p in (tmp_path / "in").iterdir()}
    assert predict(run, tmp_path / "in", "--output", tmp_path / "in", "--overwrite") == 2
    assert "0000.png is one of the inputs" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0000.png").symlink_to(tmp_path / "in" / "0000.png")
    assert predict(run, tmp_path / "in/0000.png", "--output", tmp_path / "out", "--overwrite") == 2
    assert {p: p.read_bytes() for p in (tmp_path / "in").iterdir()} == before


def test_a_video_becomes_a_video(run, tmp_path, capsys, catalogs):
    same, named = tmp_path / "0000.png", tmp_path / "overview.jpg"
    for copy in (same, named):
        shutil.copy(run / "val" / "0001.png", copy)
    out = tmp_path / "out"
    inputs = (run / "film.avi", run / "val" / "0000.png", same, named)
    assert predict(run, *inputs, "--output", out, "--frames", "3") == 0
    # The picture of an input with the overview's name gets another name.
    shapes = [cv2.imread(str(out / f"overview{n}.jpg")).shape for n in ("", "-2")]
    assert shapes == [(384, 1152, 3), (480, 480, 3)]
    assert "3 pictures and 1 video in" in capsys.readouterr().out
    video = cv2.VideoCapture(str(out / "film.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.get(cv2.CAP_PROP_FPS) == 10
    assert video.read()[1].shape == (480, 480, 3)
    assert (out / "0000.png").is_file() and (out / "0000-2.png").is_file()
    truth, results = results_of(out)
    assert [i.get("frame") for i in truth.dataset["images"]] == [0, 1, 2, None, None, None]
    assert {r["image_id"] for r in results} == {1, 2, 3, 4, 5, 6}
    assert not list(out.glob(".*")), "a part of a video was left"


@pytest.mark.parametrize("times", [1, 2])
def test_the_first_ctrl_c_is_raised_at_the_end_and_the_second_at_once(times):
    # A pytest that a shell script started in the background ignores SIGINT.
    before, done = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt), delayed_interrupt() as noted:
            for number in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(number)
        assert noted == [signal.SIGINT] and done == [0]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_pictures_are_drawn_in_any_thread():
    def draw_there():
        with delayed_interrupt() as noted:
            return noted

    with ThreadPoolExecutor() as pool:
        assert pool.submit(draw_there).result() == []


def test_a_stream_until_ctrl_c(run, tmp_path):
    """The camera is given by its address, and the output of the interrupted run is complete."""
    film(tmp_path / "long.avi", [draw_image("val", 0)[0]] * 1000)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/long.avi"
        out = tmp_path / "out"
        command = ["--run", str(run / "out"), "--camera", address, "--output", str(out)]
        process = background("tools/predict.py", *command)
        part = out / ".camera.part.mp4"
        wait_until(lambda: part.is_file() and part.stat().st_size, process)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        server.shutdown()
    assert process.returncode == 130 and err == "interrupted\n", err
    truth, results = results_of(out)
    frames = cv2.VideoCapture(str(out / "camera.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)
    assert 1 <= frames < 1000 and abs(frames - len(truth.imgs)) <= 1
    assert {r["image_id"] for r in results} <= set(truth.imgs)
    assert sorted(p.name for p in out.iterdir()) == ["camera.mp4", "images.json", "results.json"]


def stock_checkpoint(folder, *opts):
    """Returns paths of a config and weights of a stock model, without keys of this package."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    cfg = small_cfg("quickstart/faster_rcnn_ce.yaml", *opts)
    DetectionCheckpointer(build_model(cfg), str(folder)).save("stock")
    del cfg["RAMBO_TRAIN"], cfg.MODEL["RAMBO"]
    (folder / "stock.yaml").write_text(cfg.dump())
    return folder / "stock.yaml", folder / "stock.pth"


def test_a_stock_checkpoint(run, tmp_path, capsys, catalogs):
    config, weights = stock_checkpoint(tmp_path, "DATASETS.TEST", "('nowhere',)")
    arguments = ["--config", config, "--weights", weights, "--output", tmp_path / "out"]
    arguments += [run / "val" / "0000.png"]
    error = refused(capsys, main, *arguments, "--classes", "a,b,c")
    assert "--classes names 3 classes, the model has 4" in error
    assert call(main, *arguments, "--classes", "a,b,c,d") == 0
    assert "at least 0.5 (the default)" in capsys.readouterr().out
    truth, _ = results_of(tmp_path / "out")
    assert [c["name"] for c in truth.dataset["categories"]] == ["a", "b", "c", "d"]
    # RaMBO's head loads the stock weights. The class names come from the config's datasets.
    saved = find_model(None, QUICKSTART, str(weights))
    assert Detector(saved).metadata.thing_classes == list(CLASSES)


def test_category_ids_are_the_data_sets_own(tmp_path):
    config, weights = stock_checkpoint(
        tmp_path, "DATASETS.TEST", "('coco_2017_val',)", "MODEL.ROI_HEADS.NUM_CLASSES", 80
    )
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    for classes, number in ((names, 13), (["first", *names[1:]], 12)):
        (tmp_path / "data.json").write_text(json.dumps({"classes": classes}))
        detector = Detector(find_model(None, str(config), str(weights)))
        assert detector.metadata.thing_classes == classes
        assert detector.category_id(names.index("stop sign")) == number


def test_a_video_that_ends_early_is_named(run, tmp_path, capsys, catalogs):
    video, out = tmp_path / "cut.avi", tmp_path / "out"
    film(video, [draw_image("val", index)[0] for index in range(20)])
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert predict(run, video, "--output", out) == 1
    text, error = capsys.readouterr()
    assert re.match(rf"failed: {video}: only (9|10) of 20 frames can be read\n", error), error
    assert error.endswith("\nerror: 1 of 1 files failed, see above\n") and "1 video in" in text
    assert predict(run, video, "--output", out, "--overwrite", "--frames", 5) == 0


def test_what_is_no_image_in_a_folder_is_left_out(run, tmp_path, capsys, catalogs):
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(run / "val", folder)
    write_broken_image(folder / "0.jpg")
    for name in ("0000.png", "film.mp4"):
        (folder / name).write_bytes(b"nothing of the kind")
    film(folder / "no_frames.avi", [])
    Image.new("RGB", (2, 2000)).save(folder / "thin.png")  # Detectron2 resizes it to 0 px width
    assert cv2.VideoCapture(str(folder / "no_frames.avi")).isOpened()
    assert predict(run, folder, "--output", out) == 1
    text, error = capsys.readouterr()
    *lines, last = error.splitlines()
    wanted = ("0000.png is not an image", "film.mp4", "no_frames.avi: OpenCV cannot read a frame")
    wanted += ("0.jpg cannot be read", "thin.png cannot be processed")
    assert all(said in line for said, line in zip(wanted, lines, strict=True)), error
    assert last == "error: 5 of 7 files failed, see above" and "2 pictures in" in text
    files = {Path(item["file_name"]).name for item in results_of(out)[0].imgs.values()}
    assert files == {"0001.png", "0002.png"}
    for name in ("0001.png", "0002.png"):
        (folder / name).unlink()
    assert predict(run, folder, "--output", tmp_path / "nothing") == 1
    assert f"\nno pictures in {tmp_path / 'nothing'}\n" in f"\n{capsys.readouterr().out}"
    for name in ("0.jpg", "thin.png"):
        (folder / name).unlink()
    assert predict(run, folder, "--output", tmp_path / "none") == 2
    assert "0000.png is not an image" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_one_line_without_advice_that_does_not_help(run, tmp_path, capsys, catalogs):
    with disk_full():
        assert predict(run, run / "val", "--output", tmp_path / "out") == 1
    assert capsys.readouterr().err == (
        "error: [Errno 27] File too large: allow larger files (ulimit -f), or write to another "
        "file system\n"
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--run", "no/such"], "--run no/such is not the output folder of a training"),
        (["x.png"], "name a detector: --run"),
        (["--run", "{out}", "--config", "x.yaml"], "--run and --config exclude each other"),
        (["--run", "{out}"], "no inputs: name images"),
        (["--run", "{out}", "none.png"], "none.png: no such file"),
        (["--run", "{out}", "{tmp}/empty"], "no images or videos in this folder"),
        (["--run", "{out}", "{tmp}/broken.png"], "broken.png is not an image"),
        (["--run", "{out}", "{tmp}/16-bit.png"], "16-bit"),
        (["--run", "{out}", "{tmp}/broken.mp4"], "broken.mp4: OpenCV cannot open this video"),
        (["--run", "{out}", "--camera", "77"], "--camera 77: OpenCV cannot open this video"),
        (["--run", "{out}", "{out}/../val", "--camera", "77"], "--camera 77: OpenCV cannot open"),
        (["--run", "{out}", "--camera", ""], "--camera '': OpenCV cannot open this video"),
        (["--run", "{out}", "{out}/../val", "--output", "{tmp}/taken", "--overwrite"],
         "taken/results.json is a folder: use another --output FOLDER"),
        (["--run", "{out}", "--weights", "no.pth"], "--weights no.pth: no such file"),
        (["--run", "{out}", "--threshold", "2"], "--threshold must be in [0, 1], got 2"),
        (["--run", "{out}", "{out}/../val", "--opts", "MODEL.NO", "1"], "MODEL.NO"),
        (["--run", "{out}", "{out}/../val", "--opts", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"],
         "does not fit the model of"),
        (["--frames", "0"], "--frames must be >= 1"),
        (["--nothing"], "unrecognized argument --nothing"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(words, message, run, tmp_path, capfd, catalogs):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken" / "results.json").mkdir(parents=True)
    for name in ("broken.png", "broken.mp4"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(tmp_path / "16-bit.png")
    words = [w.replace("{out}", str(run / "out")).replace("{tmp}", str(tmp_path)) for w in words]
    assert message in refused(capfd, main, "--output", tmp_path / "output", *words)
    assert not (tmp_path / "output").exists()


def test_inputs_before_and_after_the_options(tmp_path, monkeypatch):
    assert parse_args(["a.png", "--threshold", "0.9", "b.png"]).inputs == ["a.png", "b.png"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-x.jpg").touch()
    with pytest.raises(InputError, match="unrecognized argument -x.jpg: write ./-x.jpg"):
        parse_args(["-x.jpg"])


def test_what_is_not_looked_into(tmp_path):
    write_coco(tmp_path, 2)
    folder, out = tmp_path / "train", tmp_path / "train" / "predictions"
    out.mkdir()
    for name in ("predictions/0000.png", ".hidden.png"):
        (folder / name).write_bytes((folder / "0000.png").read_bytes())
    sources, _ = find_sources([str(folder)], [], out)
    assert [Path(s.path_or_address).name for s in sources] == ["0000.png", "0001.png"]
    assert all(Path(s.path_or_address).parent == folder for s in sources)
    for other in (folder, tmp_path):  # the output contains the inputs
        assert len(find_sources([str(folder)], [], other)[0]) == 3


def test_the_channels_are_those_of_the_config(finished_run, catalogs):
    saved = find_model(str(finished_run / "out"), None, None)
    image = cv2.imread(str(finished_run / "val" / "0001.png"))
    bgr, rgb = Detector(saved), Detector(saved, ["INPUT.FORMAT", "RGB"])
    assert torch.equal(rgb(image).scores, bgr(image[:, :, ::-1]).scores)
    assert not torch.equal(rgb(image).scores, bgr(image).scores)


def test_the_faults_of_data_are_said_but_not_a_class_without_boxes(tmp_path, catalogs, warnings):
    silence_libraries()
    file, images = write_coco(tmp_path, 2)
    content = json.loads(Path(file).read_text())
    content["annotations"][0]["bbox"][2] = 0
    Path(file).write_text(json.dumps(content))
    register_datasets([("own", file, images)], classes=[*CLASSES, "none"])
    (line,) = warnings()
    assert "dropped 1 box(es)" in line


def test_the_threshold_of_other_weights_is_the_default(finished_run, catalogs, tmp_path):
    out = str(finished_run / "out")
    last, named = (find_model(out, None, file) for file in (None, f"{out}/model_final.pth"))
    assert default_threshold(last)[1] == "the best F1 on own_val"
    assert default_threshold(named) == (0.5, "the default")
    last.data.annotations = {"own_val": "gone.json"}
    score, why = default_threshold(last)
    assert score == 0.5 and "gone.json of the run's last evaluation does not exist" in why
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    shutil.copy(folder / "model_final.pth", folder / "model_raw.pth")  # as after a calibration
    calibrated = folder / "calibrated" / "inference" / "coco_instances_results.json"
    assert find_model(str(folder), None, None).results == calibrated
    (folder / "last_checkpoint").write_text("model_raw.pth")  # of an unfinished run
    assert find_model(str(folder), None, None).results is None
