"""Sizes of a dilated backbone's maps."""

import torch

from fss_d2.modeling.layers.dilation import shrink_factors, shrink_maps


def test_only_stages_finer_than_usual_shrink() -> None:
    assert shrink_factors({"res3": 8, "res4": 16, "res5": 32}) == {}
    assert shrink_factors({"res3": 8, "res4": 8, "res5": 8}) == {"res4": 2, "res5": 4}
    assert shrink_factors({"res3": 8, "res4": 16, "res5": 16}) == {"res5": 4}  # VGG


def test_shrunk_maps_by_hand() -> None:
    fine = torch.arange(25.0).view(1, 1, 5, 5)
    maps = shrink_maps({"res3": fine, "res4": fine, "res5": fine}, {"res4": 2, "res5": 4})
    assert maps["res3"] is fine
    assert maps["res4"].tolist() == [[[[0.0, 4.0], [20.0, 24.0]]]]  # 5 // 2 cells, the corners kept
    assert maps["res5"].shape == (1, 1, 1, 1)
