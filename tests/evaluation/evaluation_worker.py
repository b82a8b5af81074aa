"""One process of an evaluation: ``evaluation_worker.py RANK WORLD_SIZE STORE_FILE OUTPUT_DIR``."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fss_d2.evaluation import FewShotEvaluator

EPISODES = 11
CLASSES = [1, 3, 4]  # 4 is never drawn
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def make_episode(index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Episode ``index`` as a mapper's dict and a model's output, a pure function of the index."""
    generator = torch.Generator().manual_seed(index)
    target = torch.randint(0, 2, (6, 7 + index), generator=generator, dtype=torch.uint8)
    target[0] = 255
    scores = torch.randn((2, *target.shape), generator=generator)
    image = torch.zeros((3, *target.shape), dtype=torch.uint8)
    mask = torch.ones_like(target)
    inputs = {
        "image": image,
        "height": target.shape[0],
        "width": target.shape[1],
        "target": target,
        "class_id": CLASSES[index % 2],
        "image_id": f"query{index}",
        "episode_index": index,
        "support": [{"image": image, "mask": mask, "image_id": index}],
        "support_ids": (index,),
    }
    return inputs, {"sem_seg": scores}


def evaluate(indices: list[int], output_dir: Path | None = None, **options: Any) -> dict[str, Any]:
    """Score the episodes ``indices``, one by one, and return what the evaluator returns."""
    evaluator = FewShotEvaluator(
        "evaluation_worker", output_dir, class_ids=CLASSES, class_names=NAMES, **options
    )
    evaluator.reset()
    for index in indices:
        inputs, output = make_episode(index)
        evaluator.process([inputs], [output])
    return evaluator.evaluate()


def main(rank: int, world_size: int, store: str, output_dir: str) -> None:
    """Score every ``world_size``-th episode; the last process repeats episode 0, as padding samplers do."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    indices = list(range(rank, EPISODES, world_size))
    results = evaluate(indices + [0] * (rank > 0), Path(output_dir), region_wise=True)
    if bool(results) != (rank == 0):
        raise SystemExit("scores belong to the main process alone")
    dist.barrier()  # a process that leaves early may abort while the other still sends
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
