#!/usr/bin/env python
"""Write the trained part of a checkpoint, without the frozen backbone and the optimizer.

    python tools/extract_head.py output/dcama/photos_efficientnet_lite0/model_final.pth head.pth

The file loads with MODEL.WEIGHTS; the backbone's weights then come from MODEL.BACKBONE.WEIGHTS.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fss_d2.engine.command_line import documented_parser, path_option, run_command


def extract(source: Path, target: Path, *, force: bool = False) -> int:
    """Write the head of a checkpoint; return its number of parameters."""
    import torch

    from fss_d2.io.files import atomic_path
    from fss_d2.io.state_dict import head_of, read_state_dict

    weights = read_state_dict(source)
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists: choose another name, or add --force")
    head = head_of(weights)
    if len(head) == len(weights):
        raise ValueError(f"{source} holds no backbone: it is a head already")
    with atomic_path(target) as temporary:
        torch.save({"model": {name: tensor.contiguous() for name, tensor in head.items()}}, temporary)
    return sum(tensor.numel() for tensor in head.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = documented_parser(__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("input", metavar="IN", type=path_option, help="checkpoint of a training")
    parser.add_argument("output", metavar="OUT", type=path_option, help="file to write")
    args = parser.parse_args(arguments)
    print(f"{extract(args.input, args.output, force=args.force)} parameters; wrote {args.output}")


if __name__ == "__main__":
    sys.exit(run_command(main))
