"""Configs from files and KEY VALUE pairs, and the errors about wrong ones."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from fss_d2 import config
from fss_d2.config import load_config


def _write(folder: Path, text: str, name: str = "a.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_file_base_and_overrides(tmp_path: Path) -> None:
    _write(tmp_path, "VERSION: 2\nSOLVER:\n  MAX_ITER: 5\n  BASE_LR: 0.5\n", "base.yaml")
    path = _write(tmp_path, '_BASE_: "base.yaml"\nSOLVER:\n  MAX_ITER: 7\n')
    cfg = load_config(path, ["FEW_SHOT.TEST.SHOTS", "(1, 5)", "SOLVER.OPTIMIZER", "ADAMW"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.OPTIMIZER) == (7, 0.5, "ADAMW")
    assert cfg.FEW_SHOT.TEST.SHOTS == (1, 5)
    assert cfg.is_frozen()


@pytest.mark.parametrize(("former", "now"), [("one_pass", "own"), ("cross_guided", "cross_guided")])
def test_a_former_key_is_read(tmp_path: Path, former: str, now: str) -> None:
    path = _write(tmp_path, f"MODEL:\n  DCAMA:\n    KSHOT: {former}\n")
    assert now == load_config(path).TEST.KSHOT
    assert load_config(path, ["MODEL.DCAMA.KSHOT", "vote"]).TEST.KSHOT == "vote"
    assert "KSHOT" not in load_config(path).MODEL.DCAMA


def test_num_gpus_zero_is_the_cpu(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, "VERSION: 2\n"), num_gpus=0).MODEL.DEVICE == "cpu"


def test_the_house_defaults_load() -> None:
    cfg: CfgNode = load_config(str(Path(__file__).parents[1] / "configs/Base-FewShot.yaml"))
    assert cfg.SEED == 0
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "ConstantLR"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  DCAMA:\n    HEADS: 4\n", "no config key MODEL.DCAMA.HEADS; did you mean MODEL.DCAMA"),
        ("SOLVR:\n  MAX_ITER: 4\n", "no config key SOLVR.MAX_ITER; did you mean SOLVER.MAX_ITER"),
        ("SOLVER:\n  MAX_ITER: many\n", "SOLVER.MAX_ITER"),
        ("SOLVER: [1\n", "not a config"),
        ("just text", "not a config"),
        ("", "not a config"),
        ('_BASE_: "nowhere.yaml"\n', "nowhere.yaml does not exist"),
        ("SOLVER: !!python/object/apply:os.getcwd []\n", "not a config"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises((ValueError, FileNotFoundError), match=r"a\.yaml") as caught:
        load_config(path)
    assert message in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"config file nowhere\.yaml does not exist"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITR", "4"], "did you mean SOLVER.MAX_ITER"),
        (["solver.max_iter", "4"], "did you mean SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
        (["SOLVER.MAX_ITER", "four"], "^command line: SOLVER.MAX_ITER takes a whole number, not 'four'$"),
        (["SOLVR.X=1", "SEED", "4"], "^SOLVR.X=1 has no value"),
        (["SOLVER", "4"], "SOLVER"),
    ],
)
def test_wrong_overrides(tmp_path: Path, opts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(_write(tmp_path, "VERSION: 2\n"), opts)


def test_a_home_folder_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = {
        "OUTPUT_DIR": "~/out",
        "MODEL.WEIGHTS": "~/a.pth",
        "MODEL.BACKBONE.WEIGHTS": "timm://resnet50",
        "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS": "~/d.pth",
        "MODEL.BASE_KNOWLEDGE.CACHE_DIR": "~",
        "FEW_SHOT.TEST.MANIFEST": "m~.jsonl",
        "DATALOADER.FEATURE_CACHE": "~/features",
    }
    _write(tmp_path, 'VERSION: 2\nOUTPUT_DIR: "~/of_file"\n')
    assert f"{tmp_path}/of_file" == load_config("~/a.yaml").OUTPUT_DIR
    cfg = load_config("~/a.yaml", [word for pair in keys.items() for word in pair])
    for key, value in keys.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == (f"{tmp_path}{value[1:]}" if value[0] == "~" else value), key
    with pytest.raises(ValueError, match=r"^~no-such-user/x: ~no-such-user is not a home folder"):
        load_config("~/a.yaml", ["OUTPUT_DIR", "~no-such-user/x"])


def test_every_key_of_a_path_is_known_to_be_one() -> None:
    """A new key whose name says that it is a file or folder belongs to the list."""
    words = ("DIR", "FILE", "WEIGHTS", "MANIFEST", "FOLDER", "PATH", "CACHE")
    keys = [key for key in config._keys(config.get_cfg()) if "BBOX_REG" not in key]
    assert {key for key in keys if key.rpartition(".")[2].split("_")[-1] in words} == set(config._PATHS)
