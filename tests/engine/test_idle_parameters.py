"""Distributed training of a model that has a part which is trained late."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fss_d2.engine import trainer


@pytest.mark.parametrize("idle", [False, True])
def test_the_wrapper_knows_of_idle_parameters(idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(trainer, "create_ddp_model", lambda model, **options: given.update(options))
    model = nn.Linear(1, 1)
    model.idle_parameters = idle
    trainer._distribute(model)
    assert given.get("find_unused_parameters", False) == idle


class _Late(nn.Module):
    """Its second layer is trained from iteration 2 on."""

    iteration = 0

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.early(x)
        with torch.set_grad_enabled(self.iteration >= 2):
            z = self.late(x)
        return {"loss": (y + z).square().sum()}


def test_a_late_part_has_no_gradient_before_its_time(tmp_path: Path) -> None:
    init = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(_Late(), find_unused_parameters=True)
        found = []
        for iteration in range(4):
            model.module.iteration = iteration
            model.zero_grad(set_to_none=True)
            model(torch.ones(1, 2))["loss"].backward()
            found.append(model.module.late.weight.grad is not None)
            assert model.module.early.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()
    assert found == [False, False, True, True]
