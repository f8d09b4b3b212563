"""Several processes train and resume with Detectron2's own DefaultTrainer, unchanged."""

from functools import partial
from unittest import mock

import detectron2.utils.comm as comm
import pytest
import torch
import torch.distributed as dist
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, create_ddp_model, defaults
from detectron2.engine.hooks import CallbackHook
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rambo_det.engine.checkpointer import AtomicCheckpointer
from rambo_det.errors import InputError
from rambo_det.losses.sort_keys import EMPTY_KEY
from rambo_det.modeling.criterion import RamboCriterion

from .architectures import memories
from .forked import in_processes
from .models import QUICKSTART, VARIED, small_cfg, write_coco
from .strategies import same


def memory_of(trainer):
    """Returns a copy of this process's score memory."""
    (memory,) = memories(trainer.model)
    return {name: buffer.clone() for name, buffer in memory.tensors().items()}


def trainer_of(folder, *opts):
    keys = ["DATASETS.TRAIN", "('st_data',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(folder)]
    keys += ["SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "(3,)", "DATALOADER.NUM_WORKERS", 0]
    cfg = small_cfg(QUICKSTART, *VARIED, *keys, *opts)
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    seed_all_rng(1 + comm.get_rank())
    # DefaultTrainer passes a GPU index to DistributedDataParallel, even on a CPU.
    make = partial(create_ddp_model, device_ids=None)
    with mock.patch.object(defaults, "create_ddp_model", make):
        return DefaultTrainer(cfg)


def resumed(folder, checkpoint, *opts):
    """Returns a new trainer, resumed from the checkpoint, and a copy of its loaded memory."""
    comm.synchronize()
    if comm.is_main_process():
        (folder / "last_checkpoint").write_text(checkpoint)
    comm.synchronize()
    trainer = trainer_of(folder, *opts)
    trainer.resume_or_load(resume=True)
    return trainer, memory_of(trainer)


def every_process_gets_its_memory_back(rank, folder):
    for name, opts in (("together", ()), ("alone", ("MODEL.RAMBO.GLOBAL_RANKING", False))):
        trainer, saved = trainer_of(folder / name, *opts), []
        remember = CallbackHook(after_step=lambda trainer, to=saved: to.append(memory_of(trainer)))
        trainer.register_hooks([remember])
        trainer._hooks = [trainer._hooks[-1], *trainer._hooks[:-1]]
        trainer.train()
        assert all((memory["negatives"] != EMPTY_KEY).any() for memory in saved)
        for done, checkpoint in ((2, "model_0000001.pth"), (4, "model_final.pth")):
            trainer, loaded = resumed(folder / name, checkpoint, *opts)
            assert trainer.start_iter == done
            assert same(loaded, saved[done - 1]), (name, checkpoint)


def a_folder_that_one_process_does_not_see(rank, folder):
    own = folder / "together" if rank == 0 else folder / "of another machine"
    checkpointer = AtomicCheckpointer(torch.nn.Linear(1, 1), str(own))
    with pytest.raises(InputError, match="shared by all machines"):
        checkpointer.resume_or_load("", resume=True)


def a_score_that_is_not_finite(rank):
    """Checks that NaN stops every process, and that the process with the NaN names the class."""
    scores = torch.zeros(6, 4)
    if rank == 1:
        scores[2, 3] = torch.nan
    where = "of class star \\(1 of 6\\)" if rank == 1 else "in the batch of another process"
    loss = RamboCriterion(4, class_names=("circle", "square", "triangle", "star"))
    with pytest.raises(FloatingPointError, match=f"loss_cls: .* {where}"):
        loss(scores.requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 4]))


def _checks(rank, world, folder):
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(world)
    register_coco_instances("st_data", {}, f"{folder}/train.json", f"{folder}/train")
    every_process_gets_its_memory_back(rank, folder)
    a_folder_that_one_process_does_not_see(rank, folder)
    a_score_that_is_not_finite(rank)


def test_several_processes_with_the_stock_trainer(tmp_path):
    write_coco(tmp_path, 4)
    for name in ("together", "alone", "of another machine"):
        (tmp_path / name).mkdir()
    in_processes(2, tmp_path, _checks, tmp_path)


def test_the_last_iteration_is_collected_too(monkeypatch):
    loss, at = RamboCriterion(1, checkpoint_period=2, max_iter=5), []
    monkeypatch.setattr(loss.memory, "all_gather_for_checkpoint", lambda: at.append(storage.iter))
    with EventStorage() as storage:
        for storage.iter in range(5):
            loss(torch.randn(4, 1, requires_grad=True), torch.tensor([0, 1, 1, 1]))
    assert at == [1, 3, 4]
