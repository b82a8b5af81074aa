"""A loss that is not finite: which episodes it came from, and a replay of that iteration."""

import logging
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import TrainerBase, hooks
from detectron2.utils import comm

from fss_d2.data.build import build_few_shot_train_loader
from fss_d2.data.catalog import get_records
from fss_d2.data.episode import Episode
from fss_d2.data.joined import training_set
from fss_d2.io.files import read_json_object, shortened, write_json

from .feature_cache import with_features
from .stopping import Agreement, ConsoleLines
from .train_loop import NonFiniteLoss, SeedIterations, SetModelIteration, seed_iteration

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["Start", "replay", "report_failure"]

logger = logging.getLogger(__name__)

_MOST_NAMED = 2  # episodes in the error; all are in the file
_KEYS = {"iteration": int, "rank": int, "episodes": list, "checkpoint": str}


@dataclass(frozen=True)
class Start:
    """Where a training began: its first iteration, and the checkpoint that it was resumed from, if any."""

    iteration: int = 0
    checkpoint: str = ""

    def before(self, iteration: int, cfg: CfgNode) -> str:
        """The last checkpoint of this training before an iteration; "" if that is its beginning."""
        done = iteration // cfg.SOLVER.CHECKPOINT_PERIOD * cfg.SOLVER.CHECKPOINT_PERIOD
        if done <= self.iteration:
            return self.checkpoint
        return str(Path(cfg.OUTPUT_DIR) / f"model_{done - 1:07d}.pth")


def report_failure(cfg: CfgNode, start: Start, failure: NonFiniteLoss) -> str:
    """Write ``OUTPUT_DIR/failed_episode.json``; return a message with the episodes and the command to replay.

    All processes call it; the main process writes.
    """
    file = Path(cfg.OUTPUT_DIR) / "failed_episode.json"
    entries = _described(cfg, failure.episodes)
    if comm.is_main_process():
        content = {
            **{"iteration": failure.iteration, "rank": failure.rank, "processes": comm.get_world_size()},
            "losses": {name: str(value) for name, value in failure.losses.items()},  # JSON has no NaN
            **{"checkpoint": start.before(failure.iteration, cfg), "episodes": entries},
        }
        write_json(file, content)
    losses = ", ".join(f"{name} {value}" for name, value in failure.losses.items())
    named = "; ".join(map(_sentence, entries[:_MOST_NAMED]))
    more = len(entries) - _MOST_NAMED
    rest = f"; and {more} more of the batch in that file" if more > 0 else ""
    # The command comes first, as a long line is cut at its end.
    what = f"{NonFiniteLoss.TEXT}{failure.iteration} ({losses}); replay it by `{_command(cfg, file)}`"
    return f"{what}: {named}{rest}"


def _described(cfg: CfgNode, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The training episodes with these numbers: class, files, seed."""
    if not indices:
        return []
    name = training_set(cfg.DATASETS.TRAIN)
    names = MetadataCatalog.get(name).get("stuff_classes")
    files = {record["image_id"]: record["file_name"] for record in get_records(name)}
    return [
        {
            **{"index": e.index, "class_id": e.class_id, "class": names[e.class_id] if names else ""},
            **{"query": files[e.query], "supports": [files[s] for s in e.supports], "seed": e.seed},
            **({"pasted": [files[image] for image, _ in e.pasted]} if e.pasted else {}),
        }
        for e in map(build_few_shot_train_loader(cfg).sampler.episodes.sample, indices)
    ]


def _sentence(entry: Mapping[str, Any]) -> str:
    supports = ", ".join(map(shortened, entry["supports"])) or "none"
    where = f"class {entry['class_id']} {entry['class']}, query {shortened(entry['query'])}"
    pasted = "".join(f", pasted from {shortened(file)}" for file in entry.get("pasted", ()))
    return f"episode {entry['index']}: {where}{pasted}, supports {supports}, seed {entry['seed']}"


def _command(cfg: CfgNode, file: Path) -> str:
    processes = comm.get_world_size()
    program = sys.argv[0] if sys.argv[0].endswith("train_net.py") else "train_net.py"
    words = ["python", program, "--config-file", str(Path(cfg.OUTPUT_DIR) / "config.yaml")]
    if cfg.MODEL.DEVICE == "cpu":
        words += ["--num-gpus", "0", *(["--num-processes", str(processes)] if processes > 1 else [])]
    elif processes > 1:
        words += ["--num-gpus", str(processes)]
    return shlex.join([*words, "--replay", str(file)])


def replay(trainer: "Trainer", file: Path) -> None:
    """Train from the last checkpoint to the iteration of a failure, and compute the loss of its episodes.

    Nothing is saved. With a SEED of 0 or more, and the number of processes of the failure, all iterations are
    those of the failed training to the bit.

    Args:
        trainer: new, of the config of the failed training.
        file: what `report_failure` wrote.

    Raises:
        FloatingPointError: a loss is infinite or NaN again; the message names the episodes.
        ValueError: the file is no such file, or its checkpoint is gone.
    """
    failure = _read(file)
    cfg, iteration = trainer.cfg, failure["iteration"]
    if cfg.SEED < 0:
        logger.warning("SEED is %d: the training drew random numbers that no replay can repeat", cfg.SEED)
    trainer.start_from(failure["checkpoint"])
    kept = (Agreement, SeedIterations, SetModelIteration, hooks.IterationTimer, hooks.LRScheduler)
    trainer._hooks = [hook for hook in trainer._hooks if isinstance(hook, kept)]
    if comm.is_main_process():
        console = trainer.build_writers()[0]
        trainer.register_hooks([ConsoleLines(console, cfg.SOLVER.LOG_PERIOD, trainer._agreement)])
    with with_features(trainer.checkpointer.model, trainer.features):
        TrainerBase.train(trainer, trainer.start_iter, iteration)
        _compare(trainer, failure)


def _read(file: Path) -> dict[str, Any]:
    failure = read_json_object(file, "give the failed_episode.json of a training")
    wrong = [key for key, kind in _KEYS.items() if not isinstance(failure.get(key), kind)]
    if not wrong and not all(
        isinstance(e, dict) and isinstance(e.get("index"), int) for e in failure["episodes"]
    ):
        wrong = ["episodes"]
    if wrong:
        raise ValueError(f"{file}: no {wrong[0]!r}; give the failed_episode.json of a training")
    return failure


def _compare(trainer: "Trainer", failure: Mapping[str, Any]) -> None:
    """Compute the losses of the batch, and of each of its episodes alone."""
    cfg, iteration = trainer.cfg, failure["iteration"]
    model = trainer.checkpointer.model
    if broken := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        logger.warning(
            "%d weights are infinite or NaN before iteration %d: %s", len(broken), iteration, broken[0]
        )
    loader = build_few_shot_train_loader(cfg)
    episodes: list[Episode] = [loader.sampler.episodes.sample(e["index"]) for e in failure["episodes"]]
    batch = [loader.dataset[episode] for episode in episodes]
    entries = _described(cfg, [episode.index for episode in episodes])
    model.iteration = iteration

    def losses(part: Sequence[dict[str, Any]]) -> dict[str, float]:
        if cfg.SEED >= 0:
            seed_iteration(cfg.SEED, iteration, failure["rank"])
        return {name: loss.item() for name, loss in trainer._trainer.losses(model.train(), part).items()}

    together = losses(batch)
    logger.info("Iteration %d: the batch has %s", iteration, together)
    guilty = []
    for entry, mapped in zip(entries, batch, strict=True):
        try:
            alone = losses([mapped])
        except ValueError as error:  # batch norm needs more than one value per channel
            logger.info("%s: does not run alone (%s)", _sentence(entry), error)
            continue
        logger.info("%s: %s", _sentence(entry), alone)
        if not all(map(math.isfinite, alone.values())):
            guilty.append(_sentence(entry))
    if guilty or not all(map(math.isfinite, together.values())):
        which = "; ".join(guilty) or "only all episodes of the batch together"
        raise FloatingPointError(
            f"replayed: the loss of iteration {iteration} is infinite or NaN again: {which}"
        )
    logger.info("The losses are finite this time")
