"""The tool that fits the numbers of the presence, where colours tell whether the object is there."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from fss_d2.checkpoint.checkpointer import load_model
from fss_d2.config import load_config
from fss_d2.modeling.meta_arch.contract import stack_supports
from tests.modeling.episodes import TINY
from tests.modeling.fake_backbone import register_fake_backbone

_PROGRAM = Path(__file__).parents[2] / "tools" / "fit_presence.py"
tool = runpy.run_path(str(_PROGRAM))


def run(folder: Path, dataset: str, *words: str) -> list[str]:
    """Fit, and return the keys that the model was built with."""
    config = folder / "config.yaml"
    config.write_text(f'VERSION: 2\nDATASETS: {{TEST: ["{dataset}"]}}\nOUTPUT_DIR: {folder / "out"}\n')
    keys = ["MODEL.META_ARCHITECTURE", "Prototype", "MODEL.BACKBONE.NAME", register_fake_backbone()]
    keys += ["INPUT.FEW_SHOT_SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"]
    keys += ["MODEL.DEVICE", "cpu", *map(str, TINY)]
    files = ["--config-file", str(config), "--output", str(folder / "fitted.pth")]
    tool["main"]([*files, *words, *keys])
    return keys


def test_fitted_numbers_tell_the_classes_apart(
    some_colours: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = run(tmp_path, some_colours, "--episodes", "12", "--shots", "1", "2")
    found = re.search(r"(\d+) queries: AUC ([\d.]+) %, calibration error ([\d.]+) %", capsys.readouterr().out)
    assert found and int(found[1]) == 48 and float(found[2]) > 99 and float(found[3]) < 5
    state = torch.load(tmp_path / "fitted.pth", weights_only=True)["model"]
    assert {name.partition(".")[0] for name in state} == {"presence"}

    seed_all_rng(3)  # the backbone of the fit
    fitted = load_model(load_config(str(tmp_path / "config.yaml"), keys))
    fitted.presence.make_room(state)
    fitted.load_state_dict(state, strict=False)
    # As the tool reads pictures: a red one as the support, then a red and a blue query.
    from detectron2.data import DatasetCatalog

    from fss_d2.data.images import read_image

    records = DatasetCatalog.get(some_colours)
    images = [torch.from_numpy(read_image(r["file_name"])[0].copy()).permute(2, 0, 1) for r in records]
    red, blue = ([i for i, r in enumerate(records) if r["classes"] == [c]] for c in (0, 1))
    mask = (images[red[0]][0] > 200).to(torch.uint8)
    episode = {"support": [{"image": images[red[0]], "mask": mask}]}
    with torch.no_grad():
        support = fitted.encode_support(*stack_supports([episode]))
        queries = torch.stack([images[red[1]], images[blue[0]]])
        shown, absent = fitted.match(fitted.encode_query(queries), support).presence.sigmoid()
    assert shown > 0.9 and absent < 0.1


def test_pictures_that_all_show_the_class_are_refused(both_colours: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{both_colours}: each picture shows each class, so there are no"):
        run(tmp_path, both_colours, "--episodes", "4")
    assert not (tmp_path / "fitted.pth").exists()
