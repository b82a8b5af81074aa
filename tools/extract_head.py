#!/usr/bin/env python
"""Write what a training learned, without its frozen backbone and the optimizer: a small file to share.

    python tools/extract_head.py output/dcama/photos_efficientnet_lite0/model_final.pth head.pth

The file loads with MODEL.WEIGHTS; the backbone's weights are then those of MODEL.BACKBONE.WEIGHTS.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fss_d2.engine.command_line import run_command
from fss_d2.files import atomic_path


def extract(source: Path, target: Path, *, force: bool = False) -> int:
    """Write the head of a checkpoint; return its number of parameters.

    Raises:
        FileNotFoundError, FileExistsError: there is no checkpoint, or a file where the head shall go.
        ValueError: it is no checkpoint of a model with a backbone, or has nothing else.
    """
    import torch  # here, so that --help is quick

    from fss_d2.checkpoint.heads import head_of
    from fss_d2.checkpoint.reading import UNREADABLE, load_plain

    if not source.is_file():
        raise FileNotFoundError(f"checkpoint {source} does not exist")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists: choose another name, or add --force")
    try:
        weights = load_plain(source)["model"]
        head = head_of(weights)
    except UNREADABLE as error:
        raise ValueError(f"{source} is no checkpoint of a training ({error})") from error
    if len(head) == len(weights):
        raise ValueError(f"{source} holds no backbone: it is a head already")
    with atomic_path(target) as temporary:
        torch.save({"model": {name: tensor.contiguous() for name, tensor in head.items()}}, temporary)
    return sum(tensor.numel() for tensor in head.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; raises as `extract`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("input", metavar="IN", type=Path, help="checkpoint of a training")
    parser.add_argument("output", metavar="OUT", type=Path, help="file to write")
    args = parser.parse_args(arguments)
    count = extract(args.input, args.output, force=args.force)
    print(f"{count} parameters; wrote {args.output}")


if __name__ == "__main__":
    sys.exit(run_command(main))
