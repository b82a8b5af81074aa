"""The trainer: Detectron2's, for episodes, with training that resumes to the bit."""

import logging
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import fss_d2.modeling  # noqa: F401  (fills Detectron2's registries)
from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.data.build import build_few_shot_train_loader
from fss_d2.modeling.build import build_model, has_base_knowledge

from .base_prototypes import fill_base_knowledge
from .evaluate import (
    Results,
    build_evaluators,
    check_evaluators,
    evaluate,
    evaluate_periodically,
    evaluation_name,
    write_summary,
)
from .hooks import KeepBest, SeedIterations, TellIteration, cut_metrics
from .solver import build_gradient_clipper, build_lr_scheduler, build_optimizer
from .train_loop import AutocastTrainer, EpisodeStream

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Train a few-shot segmentor as the config says.

    Where ``cfg.SEED`` is 0 or more, N + M iterations give the same weights, optimizer state and losses as N
    iterations, a stop and M resumed ones: episode i and the random state of iteration i are functions of the
    seed and i alone, and a checkpoint holds the rest.

    Losses are copied from the device every LOG_PERIOD iterations. A loss that is infinite or NaN ends the
    training then, and in any case before a checkpoint or an evaluation.

    Args:
        cfg: the config; MODEL.WEIGHTS is not loaded before `resume_or_load`.

    Raises:
        ValueError: the config asks for something that does not exist; the message names the key.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own __init__ wraps the model for GPUs only and starts the loader at iteration 0.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.results: Results | None = None
        model = self.build_model(cfg)
        if cfg.DATASETS.TEST:
            check_evaluators(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._trainer = AutocastTrainer(
            _distribute(model),
            EpisodeStream(lambda start_iter: self.build_train_loader(cfg, start_iter=start_iter)),
            optimizer,
            clip=build_gradient_clipper(cfg),
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
            reads_losses=_reads_losses(cfg),
        )
        self.checkpointer = FewShotCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Take up the last checkpoint in OUTPUT_DIR, if asked to and there is one, else MODEL.WEIGHTS.

        A new training builds the prototypes of the base classes, of models that have such.
        """
        super().resume_or_load(resume)
        self.data_loader.start_at(self.start_iter)
        # A checkpoint to start from may know another fold's classes; one to go on with is taken to the bit.
        if not (
            resume and self.checkpointer.has_checkpoint() and has_base_knowledge(self.checkpointer.model)
        ):
            fill_base_knowledge(self.cfg, self.checkpointer.model)

    def train(self) -> Results | None:
        """Train, evaluate the final model, and write ``OUTPUT_DIR/results.json``.

        Returns:
            The scores of `evaluate`; None without test sets.
        """
        if comm.is_main_process():  # only now is it known where the curves go on
            cut_metrics(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)
            writers = hooks.PeriodicWriter(self.build_writers(), period=self.cfg.SOLVER.LOG_PERIOD)
            self.register_hooks([writers])
        TrainerBase.train(self, self.start_iter, self.max_iter)
        if self.results:
            weights = str(Path(self.cfg.OUTPUT_DIR) / "model_final.pth")
            write_summary(self.cfg, self.results, weights=weights)
        return self.results

    def after_train(self) -> None:
        """End the loader, run the closing hooks; a training that broke off has nothing to evaluate."""
        self._trainer.close()
        if self.iter < self.max_iter:
            unfinished = (hooks.EvalHook, hooks.BestCheckpointer)
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, unfinished)]
        super().after_train()

    def build_hooks(self) -> list[hooks.HookBase]:
        """Seeding, timing, learning rate, checkpoints, evaluation; `train` adds the writers after them."""
        cfg = self.cfg
        built: list[hooks.HookBase] = [SeedIterations(cfg.SEED)] if cfg.SEED >= 0 else []
        built += [TellIteration(), hooks.IterationTimer(), hooks.LRScheduler()]
        if comm.is_main_process():
            # Before the evaluation: should that fail, the checkpoint is there.
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        if cfg.DATASETS.TEST:
            built += self._evaluation_hooks()
        return built

    def _evaluation_hooks(self) -> list[hooks.HookBase]:
        test, period = self.cfg.TEST, self.cfg.TEST.EVAL_PERIOD
        built: list[hooks.HookBase] = []
        if period > 0:
            built.append(hooks.EvalHook(period, self._test_periodically))
            if test.BEST_METRIC and comm.is_main_process():
                best = FewShotCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR, tag_last=False)
                name = evaluation_name(self.cfg.DATASETS.TEST[-1], self.cfg.FEW_SHOT.TEST.SHOTS[0])
                built.append(
                    KeepBest(period, best, f"periodic/{name}/{test.EVALUATORS[0]}/{test.BEST_METRIC}")
                )
        built.append(hooks.EvalHook(0, self._test_finally))
        return built

    def _test_periodically(self) -> dict[str, Results]:
        return {"periodic": evaluate_periodically(self.cfg, self.model)}

    def _test_finally(self) -> Results:
        self.results = self.test(self.cfg, self.model)
        return self.results

    def build_writers(self) -> list[EventWriter]:
        """The console, ``metrics.json`` (plain values, not smoothed) and TensorBoard."""
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(str(Path(folder) / "metrics.json"), window_size=1),
            TensorboardXWriter(folder),
        ]

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks and step with its optimizer, which Detectron2 0.6 leaves out."""
        return TrainerBase.state_dict(self) | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See `fss_d2.modeling.build.build_model`."""
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """See `fss_d2.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """See `fss_d2.engine.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iter: int = 0) -> Iterable[list[dict[str, Any]]]:
        """See `fss_d2.data.build_few_shot_train_loader`."""
        return build_few_shot_train_loader(cfg, start_iter=start_iter)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """The evaluators of one test set, without files."""
        return DatasetEvaluators(build_evaluators(cfg, dataset_name))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> Results:
        """See `fss_d2.engine.evaluate.evaluate`."""
        return evaluate(cfg, model)


def _reads_losses(cfg: CfgNode) -> Callable[[int], bool]:
    """Whether an iteration copies the losses from the device: before what is logged, saved or evaluated."""
    periods = (cfg.SOLVER.LOG_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD)
    last = cfg.SOLVER.MAX_ITER

    def reads(iteration: int) -> bool:
        done = iteration + 1
        return done >= last or any(period > 0 and done % period == 0 for period in periods)

    return reads


def _distribute(model: nn.Module) -> nn.Module:
    """Wrap the model where several processes train it; on a CPU it has no device to name."""
    on_gpu = next(model.parameters()).is_cuda
    options: dict[str, Any] = {} if on_gpu else {"device_ids": None}
    if getattr(model, "idle_parameters", False):
        options["find_unused_parameters"] = True
    return create_ddp_model(model, broadcast_buffers=False, **options)
