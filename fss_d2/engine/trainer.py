"""The trainer: Detectron2's, for episodes, with training that resumes to the bit."""

import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.utils.data import DataLoader

import fss_d2.modeling  # noqa: F401  (fills Detectron2's registries)
from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.data.build import build_few_shot_train_loader
from fss_d2.data.feature_store import FeatureStore
from fss_d2.io.files import shortened
from fss_d2.io.state_dict import not_finite
from fss_d2.modeling.build import build_model, has_base_knowledge

from .base_prototypes import fill_base_knowledge
from .evaluate import (
    Results,
    build_evaluators,
    check_evaluators,
    evaluate,
    evaluate_periodically,
    evaluation_name,
    validation_sets,
    write_summary,
)
from .feature_cache import open_features, with_features
from .replay import Start, report_failure
from .schedule import in_iterations
from .signals import Interrupted, StopRequest, signal_name
from .solver import build_gradient_clipper, build_lr_scheduler, build_optimizer
from .stopping import Agreement, ConsoleLines, ConsolePrinter, PeriodicEvaluation, StopOnSignal
from .train_loop import (
    AutocastTrainer,
    EpisodeStream,
    KeepBest,
    SeedIterations,
    SetModelIteration,
    cut_metrics,
)

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Train a few-shot segmentor from a config.

    Where ``cfg.SEED`` is 0 or more, N + M iterations give the same weights, optimizer state and losses as N
    iterations, a stop and M resumed ones: episode i and the random state of iteration i are functions of the
    seed and i alone, and a checkpoint holds the rest.

    A length in epochs (SOLVER.EPOCHS) becomes one in iterations, by the training set (`in_iterations`).
    MODEL.WEIGHTS is not loaded before `resume_or_load`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own __init__ wraps the model for GPUs only and starts the loader at iteration 0.
        TrainerBase.__init__(self)
        cfg = in_iterations(self.auto_scale_workers(cfg, comm.get_world_size()))
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.results: Results | None = None
        self.features: FeatureStore | None = None  # opened when the model has its weights
        self._start = Start()
        self._request = StopRequest()
        self._agreement = Agreement(self._request)
        model = self.build_model(cfg)
        if validation_sets(cfg):
            check_evaluators(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._trainer = AutocastTrainer(
            _distribute(model),
            EpisodeStream(self._loader_from),
            optimizer,
            clip=build_gradient_clipper(cfg),
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
            reads_losses=_reads_losses(cfg, self._agreement),
            describe=lambda failure: report_failure(self.cfg, self._start, failure),
        )
        self.checkpointer = FewShotCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint in OUTPUT_DIR if ``resume`` and there is one, else MODEL.WEIGHTS."""
        super().resume_or_load(resume)
        resumed = resume and self.checkpointer.has_checkpoint()
        self._begin(self.checkpointer.get_checkpoint_file() if resumed else "")

    def start_from(self, checkpoint: str) -> None:
        """Go on from a checkpoint of this training; from MODEL.WEIGHTS if it is empty."""
        if not checkpoint:
            self.resume_or_load(resume=False)
            return
        self.checkpointer.load(checkpoint)
        self.start_iter = self.iter + 1
        self._begin(checkpoint)

    def _begin(self, checkpoint: str) -> None:
        """Prepare data and prototypes for the first iteration, which follows a checkpoint ("" for none)."""
        self._start = Start(self.start_iter, checkpoint)
        if self.start_iter > self.max_iter:
            logger.warning(
                "%s has %d iterations, more than SOLVER.MAX_ITER %d: it is evaluated as it is",
                *(checkpoint, self.start_iter, self.max_iter),
            )
        model = self.checkpointer.model
        self.features = open_features(self.cfg, model, training=True)
        self.data_loader.start_at(self.start_iter)
        # A checkpoint to start from may hold another fold's classes; one to resume from is loaded to the bit.
        if not (checkpoint and has_base_knowledge(model)):
            fill_base_knowledge(self.cfg, model)

    def _loader_from(self, start_iter: int) -> DataLoader[list[dict[str, Any]]]:
        return self.build_train_loader(self.cfg, start_iter=start_iter, features=self.features)

    def train(self) -> Results | None:
        """Train, and return the scores of `evaluate` (None without test sets), also in ``results.json``.

        SIGTERM, SIGHUP and Ctrl-C save a checkpoint after the iteration, and raise `Interrupted`.
        """
        if comm.is_main_process():  # only now is the first iteration known
            if self.start_iter == 0 and self.checkpointer.has_checkpoint():
                self._forget_earlier()
            cut_metrics(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)
            period = self.cfg.SOLVER.LOG_PERIOD
            console, *files = self.build_writers()
            self.register_hooks([ConsoleLines(console, period, self._agreement)])
            self.register_hooks([hooks.PeriodicWriter(files, period)])
        self.register_hooks([StopOnSignal(self._agreement)])
        with self._request.receiving(), with_features(self.checkpointer.model, self.features):
            TrainerBase.train(self, self.start_iter, self.max_iter)
        if self.results:
            write_summary(self.cfg, self.results, weights=str(Path(self.cfg.OUTPUT_DIR) / "model_final.pth"))
        return self.results

    def _forget_earlier(self) -> None:
        """Let --resume go on with this training, not with an earlier one in the same folder."""
        tag = Path(self.cfg.OUTPUT_DIR) / "last_checkpoint"
        logger.warning(
            "%s holds an earlier training (last checkpoint %s), whose files this new one replaces",
            *(self.cfg.OUTPUT_DIR, shortened(tag.read_text(errors="replace").strip())),
        )
        tag.unlink()

    def after_train(self) -> None:
        """End the loader and run the closing hooks; an interrupted training is not evaluated."""
        self._trainer.close()
        if self.iter < self.max_iter:
            unfinished = (hooks.EvalHook, hooks.BestCheckpointer)
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, unfinished)]
            super().after_train()
            return
        try:
            with self._request.at_once():
                super().after_train()
        except Interrupted as stop:
            raise self._interrupted(stop.number, "in the final evaluation", "model_final") from None

    def stop(self, number: int, *, together: bool = False) -> NoReturn:
        """Save a checkpoint of the iteration that has ended, and raise `Interrupted` for a signal.

        Args:
            number: of the signal.
            together: whether all processes call this in the same iteration; they leave after the checkpoint.
        """
        self._trainer.read_losses()
        done = self.iter + 1
        name = "model_final" if done >= self.max_iter else f"model_{self.iter:07d}"
        if comm.is_main_process():
            self.checkpointer.save(name, iteration=self.iter)
        if together:
            comm.synchronize()
        raise self._interrupted(number, f"after {done} of {self.max_iter} iterations", name)

    def _interrupted(self, number: int, when: str, name: str) -> Interrupted:
        """The end by a signal: what was saved, and how to go on."""
        path = Path(self.cfg.OUTPUT_DIR) / f"{name}.pth"
        line = (
            f"stopped by {signal_name(number)} {when}; saved {path}: the same command with --resume goes on"
        )
        return Interrupted(number, line)

    def build_hooks(self) -> list[hooks.HookBase]:
        """Seeding, timing, learning rate, checkpoints, evaluation; `train` adds the writers after them."""
        cfg = self.cfg
        built: list[hooks.HookBase] = [SeedIterations(cfg.SEED)] if cfg.SEED >= 0 else []
        built += [self._agreement, SetModelIteration(), hooks.IterationTimer(), hooks.LRScheduler()]
        if comm.is_main_process():
            # Before the evaluation, so that the checkpoint is there if the evaluation fails.
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        return built + self._evaluation_hooks() if validation_sets(cfg) else built

    def _evaluation_hooks(self) -> list[hooks.HookBase]:
        test, period = self.cfg.TEST, self.cfg.TEST.EVAL_PERIOD
        built: list[hooks.HookBase] = []
        if period > 0:
            periodic = evaluate_periodically
            scores = lambda: {"periodic": periodic(self.cfg, self.model)}  # noqa: E731
            built.append(PeriodicEvaluation(period, scores, self._request))
            if test.BEST_METRIC and comm.is_main_process():
                best = FewShotCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR, tag_last=False)
                name = evaluation_name(validation_sets(self.cfg)[-1], self.cfg.FEW_SHOT.TEST.SHOTS[0])
                metric = f"periodic/{name}/{test.EVALUATORS[0]}/{test.BEST_METRIC}"
                built.append(KeepBest(period, best, metric))
        return [*built, hooks.EvalHook(0, self._test_finally)] if self.cfg.DATASETS.TEST else built

    def _test_finally(self) -> Results:
        self.results = self.test(self.cfg, self.model)
        return self.results

    def build_writers(self) -> list[EventWriter]:
        """The console, ``metrics.json`` (plain values, not smoothed) and TensorBoard."""
        folder = self.cfg.OUTPUT_DIR
        plain = JSONWriter(str(Path(folder) / "metrics.json"), window_size=1)
        return [ConsolePrinter(self.max_iter), plain, TensorboardXWriter(folder)]

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks and step with its optimizer, which Detectron2 0.6 leaves out."""
        return TrainerBase.state_dict(self) | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError if it is of another training, or holds NaN."""
        fix = f"write the name of another checkpoint into {self.cfg.OUTPUT_DIR}/last_checkpoint"
        if spoilt := next(not_finite(state_dict.get("_trainer")), ""):
            raise ValueError(f"the checkpoint holds NaN or infinite values in {spoilt}: {fix}")
        try:
            TrainerBase.load_state_dict(self, state_dict)
            self._trainer.load_state_dict(state_dict["_trainer"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"the checkpoint is of another training ({shortened(error)}): resume with the MODEL and "
                "SOLVER keys of that training, or choose another OUTPUT_DIR"
            ) from error

    # Detectron2's names for the functions of this package.
    build_model = staticmethod(build_model)
    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)
    build_train_loader = staticmethod(build_few_shot_train_loader)
    test = staticmethod(evaluate)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """The evaluators of one test set, without files."""
        return DatasetEvaluators(build_evaluators(cfg, dataset_name))


def _reads_losses(cfg: CfgNode, agreement: Agreement) -> Callable[[int], bool]:
    """Whether an iteration copies the losses from the device: before what is logged, saved or evaluated."""
    periods = (cfg.SOLVER.LOG_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD)
    last = cfg.SOLVER.MAX_ITER

    def reads(iteration: int) -> bool:
        done = iteration + 1
        return done >= last or agreement.log or any(period > 0 and done % period == 0 for period in periods)

    return reads


def _distribute(model: nn.Module) -> nn.Module:
    """Wrap the model where several processes train it; on a CPU it has no device to name."""
    options: dict[str, Any] = {} if next(model.parameters()).is_cuda else {"device_ids": None}
    if getattr(model, "idle_parameters", False):
        options["find_unused_parameters"] = True
    return create_ddp_model(model, broadcast_buffers=False, **options)
