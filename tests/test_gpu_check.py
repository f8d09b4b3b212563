"""tools/gpu_check.py in real processes, on a CPU with small inputs."""

import json
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec

import gpu_check
import pytest
import torch

from .forked import background, python, wait_until

PLAIN = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
PARTS = ["tests", "exact", "loss", "step", "step_amp", "bandwidth", "graph"]


def command(folder, *words):
    return ["tools/gpu_check.py", "--device", "cpu", "--out", folder, *words]


def check(folder, *words, status=0, **env):
    """Runs the command, checks its exit status and returns the printed lines."""
    done = python(*command(folder, *words), **{**PLAIN, **env})
    assert done.returncode == status, done.stdout + done.stderr
    return (done.stderr if status == 2 else done.stdout).splitlines()


def load(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def times_of(folder):
    return {file.stem: file.stat().st_mtime_ns for file in folder.iterdir()}


def running(folder):
    """Returns the command lines of all processes that work for a check in the folder."""
    shown = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True)
    return [line for line in shown.stdout.splitlines() if f"{folder}/scratch" in line]


def table_of(said):
    """Returns part -> its line in the table at the end of the printed lines."""
    return dict(zip(PARTS, said[-len(PARTS) :], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of a check of all parts, and the printed lines."""
    folder = tmp_path_factory.mktemp("whole") / "check"
    return folder, check(folder, "--quick", TRITON_INTERPRET="1")


def test_one_command_gives_a_file_for_each_part_and_a_table(whole):
    folder, said = whole
    assert {file.name for file in folder.iterdir()} == {f"{n}.json" for n in [*PARTS, "gpu_check"]}
    everything = load(folder, "gpu_check")
    assert "--quick" in everything["command"]
    assert {"device", "torch", "triton", "detectron2", "quick"} <= set(everything["about"])
    assert everything["parts"] == {name: load(folder, name) for name in PARTS}
    for name, line in table_of(said).items():
        assert line.startswith(name) and line.endswith(load(folder, name)["summary"])


def test_each_part_measures_what_it_is_named_for(whole):
    parts = {name: load(whole[0], name) for name in PARTS}
    assert parts["tests"]["numbers"]["passed"] > 10
    skipped = any("no CUDA device here" in line for line in parts["tests"]["skipped"])
    assert skipped != torch.cuda.is_available()
    if find_spec("triton"):
        cases = parts["exact"]["cases"]
        assert len(cases) == 4 and all(case["equal"] for case in cases.values())
        assert all(case["largest_gradient"] > 0 for case in cases.values())
    else:
        assert "no triton" in parts["exact"]["summary"]
    methods = parts["loss"]["results"][0]["methods"]
    assert parts["loss"]["about"]["backend"] == "cpu"
    named = {"focal", "cross entropy", "RamboLoss τ=4", "double argsort", "bucketed AP"}
    assert named < set(methods)
    models = {result["model"] for result in parts["step"]["results"]}
    assert models == {"Faster R-CNN", "RetinaNet"}
    assert 0 < parts["bandwidth"]["forward"]["of_copy"] < 1 == parts["bandwidth"]["copy"]["of_copy"]
    assert all(kernel["launches"] > 0 for kernel in parts["bandwidth"]["kernels"])
    assert parts["graph"]["works"] is None


def test_a_wrong_kernel_is_an_error(whole):
    if not find_spec("triton"):
        pytest.skip("Triton is not installed")
    cases = load(whole[0], "exact")["cases"]
    assert gpu_check.wrong_cases(cases) == []
    name = next(iter(cases))
    for change in ({"loss_difference": float("nan")}, {"largest_difference": 1.0}):
        assert gpu_check.wrong_cases(cases | {name: cases[name] | change}) == [name]


def test_numbers_of_another_kind_are_not_mixed(whole, tmp_path):
    folder = tmp_path / "check"
    shutil.copytree(whole[0], folder)
    before = times_of(folder)
    last = check(folder, status=2)[-1]
    assert f"{folder}/tests.json is from another machine, version or --quick setting" in last
    (folder / "loss.json").write_text("{")
    before["loss"] = (folder / "loss.json").stat().st_mtime_ns
    assert f"{folder}/loss.json is from" in check(folder, "--quick", status=2)[-1]
    assert before.items() <= times_of(folder).items()
    assert "Not a directory" in check(folder / "loss.json" / "check", status=2)[-1]


def test_a_check_that_was_killed_goes_on(tmp_path):
    """The processes that it had started end with it, so that the GPU is free."""
    folder = tmp_path / "check"
    words = ["--quick", "--parts", "exact", "bandwidth"]
    killed = background(*command(folder, *words), **PLAIN)
    wait_until(lambda: (folder / "exact.json").is_file() and running(folder), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    end = time.monotonic() + 10
    while running(folder):
        assert time.monotonic() < end
        time.sleep(0.05)
    before = times_of(folder)
    assert not (folder / "bandwidth.json").exists()
    said = check(folder, *words)
    assert [line for line in said if line.endswith("...")] == ["bandwidth ..."]
    assert times_of(folder)["exact"] == before["exact"]
    table = table_of(said)
    assert table["tests"].endswith("not run") and "no triton" in table["exact"]


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
    folder = tmp_path / "check"
    (tmp_path / "breaking.py").write_text(
        "def pytest_runtest_call(item):\n    raise RuntimeError('not today')\n"
    )
    broken = {"PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": "-p breaking -k recorder"}
    said = check(folder, "--quick", "--parts", "tests", "graph", status=1, **broken)
    table = table_of(said)
    assert "FAILED: 1 failed" in table["tests"]
    assert "::test_the_recorder_sees_copies" in table["tests"]
    assert "CUDA graph" in table["graph"] and (folder / "graph.json").is_file()
    assert not (folder / "tests.json").exists()
    failed = load(folder, "gpu_check")["parts"]["tests"]
    assert "1 failed" in failed["error"] and any("not today" in line for line in failed["log"])


def test_a_part_that_hangs_is_stopped(tmp_path):
    folder = tmp_path / "check"
    said = check(folder, "--quick", "--parts", "step", "--limit", "1", status=1)
    assert table_of(said)["step"].endswith("FAILED: took longer than 1 s")
    assert not running(folder)
    words = ("--quick", "--parts", "graph")
    assert "0.01 s" in check(folder, *words, "--limit", "0.01", status=1)[-1]
    assert not (folder / "graph.json").exists()
    assert "CUDA graph" in check(folder, *words)[-1]  # tried again
