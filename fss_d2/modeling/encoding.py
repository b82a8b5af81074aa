"""How encoded images are kept: tensors by name, which can be saved, moved, joined and exported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

__all__ = ["Encoding"]

_ENCODINGS: dict[str, type["Encoding"]] = {}


class Encoding:
    """Base of the frozen dataclasses in which a method keeps encoded images.

    Every field is a tensor, a dict of tensors, another encoding, or None. The first dimension of every tensor
    is the episode; of encoded supports, the second is the support.
    """

    def __init_subclass__(cls) -> None:
        _ENCODINGS[cls.file_name()] = cls

    @classmethod
    def file_name(cls) -> str:
        """Its name in files, such as "dcama.ShotEncoding"."""
        return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"

    def state(self) -> list[Any]:
        """Its name and its tensors on the CPU, which `torch.load` reads with ``weights_only``."""
        return [self.file_name(), {name: tensor.detach().cpu() for name, tensor in self.flat().items()}]

    @staticmethod
    def from_state(state: Sequence[Any], device: torch.device) -> "Encoding":
        """Rebuild what `state` gave; raises KeyError, TypeError or ValueError for anything else."""
        name, tensors = state
        return _ENCODINGS[name].from_flat({n: t.to(device) for n, t in tensors.items()})

    def flat(self) -> dict[str, Tensor]:
        """All tensors by name: "field", of a dict "field.key", of an encoding "field@kind.name"."""
        tensors: dict[str, Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                tensors[f.name] = value
            elif isinstance(value, Encoding):
                kind = value.file_name().replace(".", "-")
                tensors |= {f"{f.name}@{kind}.{key}": tensor for key, tensor in value.flat().items()}
            elif value is not None:
                tensors |= {f"{f.name}.{key}": tensor for key, tensor in value.items()}
        return tensors

    @classmethod
    def from_flat(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild an encoding from what `flat` gave; raises TypeError for an unknown or a missing field,
        KeyError for an encoding of another kind.
        """
        values: dict[str, Any] = {}
        for name, tensor in tensors.items():
            first, _, key = name.partition(".")
            if key:
                values.setdefault(first, {})[key] = tensor
            else:
                values[first] = tensor
        for name in [name for name in values if "@" in name]:
            field, _, kind = name.partition("@")
            values[field] = _ENCODINGS[kind.replace("-", ".")].from_flat(values.pop(name))
        return cls(**values)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor."""
        return type(self).from_flat({name: function(tensor) for name, tensor in self.flat().items()})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join the supports of several encodings of the same episodes, in order."""
        if len(parts) == 1:
            return parts[0]
        flat = [part.flat() for part in parts]
        # Tensor by tensor, so that the parts' memory can be freed on the way.
        return cls.from_flat({n: torch.cat([part.pop(n) for part in flat], dim=1) for n in list(flat[0])})
