"""Finding blocks, and the way from one feature map to the next, by the names of modules."""

from torch import nn

from fss_d2.modeling.backbone.timm_units import neighbours


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.pool, self.layer2 = (nn.Identity() for _ in range(4))
        self.blocks = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity())


def test_neighbours_are_all_that_lies_between_two_modules() -> None:
    model = Attributes()
    assert neighbours(model, "layer1", "layer2") == ["pool", "layer2"]
    assert neighbours(model, "blocks.0", "blocks.3") == ["blocks.1", "blocks.2", "blocks.3"]
    assert neighbours(model, "layer2", "layer1") == []  # in the wrong order


def test_modules_of_different_containers_have_no_neighbours() -> None:
    model = Attributes()
    assert neighbours(model, "layer1", "blocks.2") == neighbours(model, "blocks.9", "blocks.2") == []
