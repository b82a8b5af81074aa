"""What a GPU would have to be waited for, counted on the CPU."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operators whose result, or its shape, the host has to wait for.
READS = {
    aten._local_scalar_dense,  # item(), bool(), float(), int()
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_consecutive,
    aten.equal,
    aten.repeat_interleave,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# Factories that make a tensor on the CPU unless they are given a device.
FACTORIES = {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.zeros}
# Python values that are copied to the GPU, for which it is waited too.
COPIES = {torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.tolist, Tensor.numpy, Tensor.cpu}


class ReadBacks(TorchDispatchMode):
    """Counts operators that read back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket
        by_mask = packet in INDEXING and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or packet in READS:
            self.found[str(packet)] += 1
        return func(*args, **(kwargs or {}))


class HostTensors(TorchFunctionMode):
    """Counts functions that copy between host and device, or make a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        on_host = func in FACTORIES and (kwargs or {}).get("device") is None
        if func in COPIES or on_host:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))
