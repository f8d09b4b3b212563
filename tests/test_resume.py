"""A run that is killed and resumed equals, bit for bit, a run that was not killed.

The tests kill real processes with SIGKILL. RAMBO_DET_KILLS is the number of kills (default: 2).
"""

import json
import os
import random
import signal
import time
from itertools import islice, pairwise
from types import SimpleNamespace

import detectron2.utils.comm as comm
import numpy as np
import pytest
import torch
import yaml
from detectron2.data.samplers import TrainingSampler
from detectron2.utils.file_io import PathManager

from rambo_det.cli.train import main
from rambo_det.engine.files import AtomicPathManager
from rambo_det.engine.folder import prepare_folder, saved_seed
from rambo_det.engine.hooks import SeedHook
from rambo_det.engine.keys import YAML
from rambo_det.engine.loader import ResumableLoader

from .command_line import call, own_data, refused
from .forked import free_port, in_processes, start_script, wait_until
from .models import CONFIGS, QUICKSTART, VARIED

KILLS = int(os.environ.get("RAMBO_DET_KILLS", 0))
PERIOD = 3  # of the checkpoints, in steps
TIMEOUT = 300
LONGEST = 5  # the most steps that a process makes before it is killed

LAZY = f"""
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec

cfg = LazyConfig.load("{CONFIGS}/lazy/retinanet_rambo.py")
model, dataloader, optimizer = cfg.model, cfg.dataloader, cfg.optimizer
lr_multiplier, train = cfg.lr_multiplier, cfg.train
model.backbone = model.backbone.bottom_up
model.backbone.stem.norm = model.backbone.stages.norm = "GN"
model.backbone.stages.depth = 18
model.backbone.stages.pop("stride_in_1x1")
model.backbone.out_features = model.head_in_features = ["res3"]
model.head.update(input_shape=[ShapeSpec(channels=128)], conv_dims=[32])
model.anchor_generator.update(sizes=[[16, 24, 32]], strides=[8])
dataloader.train.mapper.augmentations[0].update(short_edge_length=(64, 80, 96), max_size=96)
dataloader.train.total_batch_size = 2
dataloader.test.num_workers = 0
train.update(init_checkpoint="", device="cpu")
train.checkpointer.period = {PERIOD}
"""


class Run:
    """A run of a model with a few thousand parameters: its folder and its processes.

    Args:
        folder: folder of the run; the constructor makes it.
        tool, config, data, opts: the script in ``tools/``, and the parts of its command line.
        iterations: number of iterations of the run.
        world: number of processes, started as torchrun starts them.
    """

    def __init__(self, folder, tool, config, data, iterations, *opts, world=1):
        self.out = folder / "out"
        self.log = folder / "losses.jsonl"
        self._outputs = [folder / f"{rank}.txt" for rank in range(world)]
        self._world = world
        yaml = tool == "train_net.py"
        self._assign = (lambda k, v: [k, str(v)]) if yaml else (lambda k, v: [f"{k}={v}"])
        self._workers = "DATALOADER.NUM_WORKERS" if yaml else "dataloader.train.num_workers"
        self._tool = ["tests/logged_run.py", self.log, f"tools/{tool}"]
        self._arguments = ["--config", str(config), *data, *opts]
        for yaml_key, key, value in (
            ("SOLVER.MAX_ITER", "train.max_iter", iterations),
            ("OUTPUT_DIR", "train.output_dir", self.out),
        ):
            self._arguments += self._assign(yaml_key if yaml else key, value)
        folder.mkdir()

    def start(self, *flags, workers=0):
        """Starts the processes of the run, and returns them in the order of their ranks."""
        more = self._assign(self._workers, workers)
        command = [*self._tool, *flags, *self._arguments, *more]
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        world |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(self._world))
        return [
            start_script({**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}, output, command)
            for rank, output in enumerate(self._outputs)
        ]

    def finish(self, *flags, **kwargs):
        for process in self.start(*flags, **kwargs):
            process.join(TIMEOUT)
            assert process.exitcode == 0, self.printed()

    def kill(self, *flags, steps, in_checkpoint, delay, ranks=None, **kwargs):
        """Starts the run and kills it after ``steps`` steps plus ``delay`` seconds.

        Args:
            in_checkpoint: whether to kill while the next checkpoint is written, without the delay.
            ranks: ranks of the processes to kill, None: all. The others must end by themselves.
        """
        known = len(self.losses())
        processes = self.start(*flags, **kwargs)
        wait_until(lambda: len(self.losses()) >= known + steps, processes[0], 0.0005)
        if in_checkpoint:
            wait_until(lambda: any(self.out.glob("*.part")), processes[0], 0.0005)
        else:
            time.sleep(delay)
        victims = list(ranks or range(self._world))
        for rank in victims:
            os.kill(processes[rank].pid, signal.SIGKILL)
        for rank, process in enumerate(processes):
            process.join(TIMEOUT)
            if rank in victims:
                assert process.exitcode == -signal.SIGKILL, f"{rank} had ended\n{self.printed()}"
            else:  # the process prints the reason and ends
                assert process.exitcode == 1, f"{rank}: {process.exitcode}\n{self.printed()}"
                last = self._outputs[rank].read_text().splitlines()[-1]
                assert last.startswith("error: another process of the run has ended"), last

    def printed(self):
        """Returns the end of the output of each process."""
        return "\n".join(file.read_text()[-4000:] for file in self._outputs if file.exists())

    def losses(self):
        """Returns ``(iteration, exact losses)`` of each step so far, also repeated ones."""
        try:
            lines = [json.loads(line) for line in self.log.read_text().splitlines(keepends=True)]
        except (FileNotFoundError, json.JSONDecodeError):  # no file yet, or an unfinished line
            return []
        return [(line.pop("iteration"), line) for line in lines]

    def final(self):
        return torch.load(self.out / "model_final.pth", weights_only=True)


def assert_equal(a, b, where="checkpoint"):
    """Checks that two checkpoints are equal bit for bit, with the metadata of state dicts."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
        assert_equal(getattr(a, "_metadata", None), getattr(b, "_metadata", None), f"{where}[meta]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where


@pytest.fixture
def data(tmp_path):
    return own_data(tmp_path / "data", "rs", 7, 2)


@pytest.mark.parametrize(
    "tool, world",
    [
        ("train_net.py", 1),
        pytest.param("train_net.py", 2, marks=pytest.mark.whole),
        pytest.param("lazyconfig_train_net.py", 1, marks=pytest.mark.whole),
        ("lazyconfig_train_net.py", 2),
    ],
)
def test_a_killed_run_is_the_run_that_was_not(tool, world, tmp_path, data):
    data, keys = data
    kills = KILLS or 2
    seed = random.randrange(1 << 30)
    print(f"moments of the kills: random.Random({seed})")
    rng = random.Random(seed)
    iterations = (LONGEST + PERIOD) * kills + 3
    if tool == "train_net.py":
        config, opts = QUICKSTART, [*VARIED, *keys]
    else:
        config = tmp_path / "small.py"
        config.write_text(LAZY)
        opts = ["dataloader.train.dataset.names=rs_train", "dataloader.test.dataset.names=rs_val"]

    def make(name, *more):
        return Run(tmp_path / name, tool, config, data, iterations, *opts, *more, world=world)

    # The config sets no seed: a resumed run must find the seed that the first start drew.
    killed = make("killed")
    flags = []
    for number in range(kills):
        # The first kill comes after a checkpoint. Later kills may come before the next checkpoint.
        least = 1 if number else PERIOD + 1
        # Kills one of several processes, or all; every second time while a checkpoint is written.
        alone = [rng.randrange(world)] if world > 1 and number % 4 in (0, 3) else None
        killed.kill(
            *flags, steps=rng.randint(least, LONGEST), in_checkpoint=number % 2 == 1, ranks=alone,
            delay=rng.uniform(0, 0.2), workers=rng.randrange(3),
        )  # fmt: skip
        flags = ["--resume"]
    killed.finish("--resume", workers=2)
    assert not list(killed.out.glob("*.part"))
    for line in (killed.out / "metrics.json").read_text().splitlines():
        json.loads(line)

    final = killed.final()
    seed = str(final["seed"])
    whole = make("whole", *(["SEED", seed] if opts[0] == VARIED[0] else [f"train.seed={seed}"]))
    whole.finish()
    want = dict(whole.losses())
    assert len(want) == len(whole.losses()) == iterations
    made = killed.losses()
    starts = [b for (a, _), (b, _) in pairwise(made) if b <= a]
    assert max(starts) > 0, "no process went on from a checkpoint"
    assert {iteration for iteration, _ in made} == want.keys()
    for place, (iteration, losses) in enumerate(made):
        assert len(losses) > 2 and losses == want[iteration], f"step {iteration}, line {place}"
    assert_equal(final, whole.final())


def number_of(record):
    """Maps a record to its index and random numbers; None for image 5: the loader replaces it."""
    if record["index"] == 5:
        return None
    return record["index"], random.random(), np.random.rand(), torch.rand(()).item()


def loader(seed=3, workers=0, grouping=True):
    images = [{"index": i, "width": 2 + 2 * (i % 2), "height": 3} for i in range(10)]
    return ResumableLoader(
        images, mapper=number_of, sampler=TrainingSampler(10, seed=1), total_batch_size=3,
        aspect_ratio_grouping=grouping, num_workers=workers, seed=seed, drop_last=True,
        prefetch_factor=2,
    )  # fmt: skip


def first(loader, num, start=0):
    iterator = iter(loader)  # some trainers call iter() before they set the start
    loader.start = start
    return list(islice(iterator, num))


@pytest.mark.parametrize("grouping", [True, False])
def test_a_loader_starts_anywhere_and_draws_aside(grouping):
    whole = first(loader(grouping=grouping), 12)
    assert whole[0] != first(loader(seed=4, grouping=grouping), 1)[0]
    for workers in (0, 2):
        for start in (0, 1, 7):
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
            part = first(loader(workers=workers, grouping=grouping), 4, start)
            assert part == whole[start : start + 4]
            assert torch.equal(torch.get_rng_state(), before[0])
            assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
    assert not any(index == 5 for batch in whole for index, *_ in batch)
    drawn = [x for batch in whole for _, *numbers in batch for x in numbers]
    assert len(set(drawn)) == len(drawn), "each image is augmented by draws of its own"


def test_batches_are_of_one_shape_or_in_the_order_of_the_sampler():
    indices = [[index for index, _ in batch] for batch in islice(loader().batches(), 20)]
    assert all(len({index % 2 for index in batch}) == 1 for batch in indices)
    plain = [i for batch in islice(loader(grouping=False).batches(), 20) for i, _ in batch]
    assert plain == list(islice(iter(TrainingSampler(10, seed=1)), 60))


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file, files = tmp_path / "last_checkpoint", AtomicPathManager(PathManager)
    file.write_text("old")
    with pytest.raises(OSError, match="full"), files.open(str(file), "w") as f:
        f.write("ne")
        f.flush()
        assert file.read_text() == "old"
        raise OSError("the disk is full")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with files.open(str(file), "w") as f:
        f.write("new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_what_a_resume_finds(tmp_path, data, capsys, catalogs):
    """Tests the seed of the run, leftovers of a kill, and checkpoints that cannot be read."""
    out = tmp_path / "out"
    data, keys = data
    keys = [*VARIED, *keys, "SOLVER.CHECKPOINT_PERIOD", "1", "OUTPUT_DIR", out]

    def run(*flags, opts=()):
        return call(main, "--config", QUICKSTART, *flags, *data, *keys, *opts)

    def is_refused(message):
        error = refused(capsys, main, "--config", QUICKSTART, "--resume", *data, *keys)
        assert message in error and "model_0000000.pth" in error and "--fresh" in error

    def settled_seed():
        return yaml.safe_load((out / "config.yaml").read_text())["SEED"]

    assert run(opts=("SOLVER.MAX_ITER", "2")) == 0
    seed = settled_seed()
    assert seed >= 0 and torch.load(out / "model_final.pth", weights_only=True)["seed"] == seed
    assert run("--eval-only") == 0 and settled_seed() == seed

    last = out / "last_checkpoint"
    assert last.read_text() == "model_final.pth"
    (out / "config.yaml").write_text("MODEL: {RESN")  # a kill while the file was rewritten
    (out / "model_0000002.pth.part").write_text("killed")
    (out / "metrics.json").write_text((out / "metrics.json").read_text() + '{"iterat')
    assert run("--resume", opts=("SOLVER.MAX_ITER", "3")) == 0
    assert settled_seed() == seed and not list(out.glob("*.part"))
    assert [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert run("--resume", opts=("SOLVER.MAX_ITER", "3", "SEED", "5")) == 0
    assert settled_seed() == 5
    assert f"began with SEED {seed}, this one with 5" in (out / "log.txt").read_text()

    before = {p: p.read_bytes() for p in out.iterdir() if p.is_file()}
    last.write_text("model_0000009.pth")
    is_refused(f"{out}/model_0000009.pth, which does not exist")
    last.write_text("")
    is_refused(f"{last} is empty")
    last.write_text("model_0000001.pth")
    whole = (out / "model_0000001.pth").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (out / "model_0000001.pth").write_bytes(whole[:size])
        is_refused(f"{out}/model_0000001.pth cannot be read")
    for changed in (last, out / "model_0000001.pth"):
        changed.write_bytes(before[changed])
    assert {p: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_fresh_sets_each_earlier_run_aside(tmp_path):
    folder = tmp_path / "out"
    for number in (1, 2):
        folder.mkdir()
        (folder / "last_checkpoint").write_text(str(number))
        prepare_folder(folder, False, True, YAML)
        assert not folder.exists()
        assert (tmp_path / f"out.{number}" / "last_checkpoint").read_text() == str(number)


def _each_draws_by_itself(rank, world):
    step = SeedHook(3, None)
    step.trainer = SimpleNamespace(iter=5)
    step.before_step()
    drawn = torch.rand(()).item()  # before all_gather, which also draws
    made = ResumableLoader(
        [{"width": 1, "height": 2}] * 100, total_batch_size=4, sampler=range(100), seed=3
    )
    places = comm.all_gather([p for batch in islice(made.batches(), 9) for _, p in batch])
    draws = comm.all_gather(drawn)
    assert draws[0] != draws[1] and not set(places[0]) & set(places[1])


def test_each_process_draws_by_itself(tmp_path):
    in_processes(2, tmp_path, _each_draws_by_itself)


def test_a_checkpoint_without_a_seed_leaves_that_of_the_config(tmp_path):
    torch.save({"model": {}}, tmp_path / "m.pth")
    (tmp_path / "last_checkpoint").write_text("m.pth")
    (tmp_path / "config.yaml").write_text("SEED: 7\n")
    assert saved_seed(tmp_path) == 7
    (tmp_path / "config.yaml").write_bytes("OUTPUT_DIR: Maß".encode()[:-1])  # after a kill
    assert saved_seed(tmp_path) is None
