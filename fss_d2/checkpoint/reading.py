"""Reading files of tensors without running code that a pickle may carry."""

import os
import pickle
from typing import Any

import torch

__all__ = ["UNREADABLE", "load_plain"]

# What torch.load raises for foreign, cut or code-carrying files; a text can raise the last four.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
)


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Read tensors, numbers, strings and containers of these onto the CPU.

    Raises:
        UNREADABLE: the file is no such thing; its code, if any, has not run.
        OSError: the file cannot be opened.
    """
    return torch.load(path, map_location="cpu", weights_only=True)
