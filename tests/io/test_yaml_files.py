"""Config files that are odd, hostile or far away: one line each, and nothing is fetched unasked."""

import socket
from pathlib import Path

import pytest
from torch import nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.config import load_config
from fss_d2.io.network import DOWNLOAD_VARIABLE
from fss_d2.io.state_dict import is_head_file, local_file
from fss_d2.io.yaml_files import read_yaml


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DOWNLOAD_VARIABLE, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("asked the network"))


def write(folder: Path, text: str | bytes, name: str = "a.yaml") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def error(path: str, *opts: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_config(path, opts)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    return line


def test_bases_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    write(tmp_path, "SEED: 1\nSOLVER: {MAX_ITER: 1, BASE_LR: 0.1}\n", "low.yaml")
    write(tmp_path, '_BASE_: ["../low.yaml"]\nSEED: 2\n', "sub/middle.yaml")
    write(tmp_path, f"_BASE_: {tmp_path}/low.yaml\nSEED: 3\nVERSION: 2\n", "other.yaml")
    path = write(tmp_path, '_BASE_: ["other.yaml", "sub/middle.yaml"]\nSOLVER: {MAX_ITER: 9}\n')
    assert read_yaml(path) == {"SEED": 2, "VERSION": 2, "SOLVER": {"MAX_ITER": 9, "BASE_LR": 0.1}}


ADDRESSES = (
    "https://example.org/a.yaml",
    "http://10.0.0.1/a",
    "ftp://host/a",
    "s3://bucket/a",
    "catalog://a",
)
ADDRESSES += ("detectron2://a", "HTTPS://example.org/a")


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_not_fetched(tmp_path: Path, address: str) -> None:
    unasked = f"{address} is an address, and nothing is fetched from a network unasked: download the file and"
    path = write(tmp_path, f'_BASE_: "{address}"\n')
    assert error(path).startswith(f"{path}: its _BASE_ {unasked}")
    assert error(address).startswith(f"config file {unasked}")
    plain = write(tmp_path, "SEED: 1\n", "b.yaml")
    assert error(plain, "MODEL.WEIGHTS", address).startswith(f"MODEL.WEIGHTS {unasked}")
    for key in ("MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS", "FEW_SHOT.TEST.MANIFEST"):
        assert error(plain, key, address).startswith(f"{key} {address} is an address: download what is there")
    for read in (FewShotCheckpointer(nn.Linear(1, 1)).load, is_head_file):
        with pytest.raises(ValueError, match="nothing is fetched from a network unasked"):
            read(address)


@pytest.mark.parametrize(
    "entry",
    ["FOLDERS: [{name: a, root: 'https://x.org/a'}]", "COCO_JSON: [{json_file: 's3://x/a.json', name: a}]"],
)
def test_data_are_not_addresses(tmp_path: Path, entry: str) -> None:
    line = error(write(tmp_path, f"DATASETS: {{{entry}}}\n"))
    assert line.startswith(f"DATASETS.{entry.partition(':')[0]} ") and "is an address: download" in line


def test_a_variable_allows_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DOWNLOAD_VARIABLE, "1")
    asked = []
    base = write(tmp_path, "SEED: 5\n", "base.yaml")
    monkeypatch.setattr(
        "fss_d2.io.yaml_files.PathManager.get_local_path", lambda path: (asked.append(path), base)[1]
    )
    assert load_config(write(tmp_path, '_BASE_: "https://example.org/b.yaml"\n')).SEED == 5
    assert asked == ["https://example.org/b.yaml"]
    monkeypatch.setenv(DOWNLOAD_VARIABLE, "0")
    assert "unasked" in error(write(tmp_path, '_BASE_: "https://example.org/b.yaml"\n'))


def test_loops_of_bases(tmp_path: Path) -> None:
    own = write(tmp_path, "_BASE_: a.yaml\n")
    assert error(own) == f"{own}: not a config: its _BASE_ {own} leads back to itself; remove it"
    write(tmp_path, "_BASE_: sub/c.yaml\n", "b.yaml")
    third = write(tmp_path, "_BASE_: ../b.yaml\n", "sub/c.yaml")
    assert error(write(tmp_path, "_BASE_: b.yaml\n", "d.yaml")).startswith(
        f"{third}: not a config: its _BASE_ "
    )
    assert "leads back to itself" in error(third)


def test_a_long_row_of_bases(tmp_path: Path) -> None:
    for i in range(60):
        write(tmp_path, f"_BASE_: {i + 1}.yaml\n", f"{i}.yaml")
    assert "51.yaml comes after 51 others: join some" in error(str(tmp_path / "0.yaml"))


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    write(tmp_path, "A: &a {X: 1}\nB: *a\n", "base.yaml")
    path = write(tmp_path, "_BASE_: base.yaml\nA: {X: 2}\n")
    assert read_yaml(path) == {"A": {"X": 2}, "B": {"X": 1}}


@pytest.mark.parametrize("value", ["5", "{a: b}", "[1]", "''", "null", "[a.yaml, [b.yaml]]"])
def test_bases_of_another_type(tmp_path: Path, value: str) -> None:
    assert "its _BASE_ is" in error(write(tmp_path, f"_BASE_: {value}\n"))


def test_a_group_in_one_file_and_a_value_in_its_base(tmp_path: Path) -> None:
    write(tmp_path, "SOLVER: 5\n", "b.yaml")
    line = error(write(tmp_path, "_BASE_: b.yaml\nSOLVER: {MAX_ITER: 5}\n"))
    assert "a.yaml: SOLVER is a group of keys, and one value in its _BASE_" in line


_LAUGHS = "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SEED: " + "[" * 10_000 + "]" * 10_000, "it is nested too deeply"),
        ("SEED: " + "[" * 10_000, "it is nested too deeply"),
        ("SEED: " + "{a: " * 5_000 + "}" * 5_000, "it is nested too deeply"),
        (b"SEED: 1 # \xe4\n", "it is not UTF-8 text"),
        (b"\x00\x01\x02", "special characters are not allowed"),
        ("a: &a [1]\n" + _LAUGHS, "it stands for more than 100,000 values"),
        ("SEED: 1\nSEED: 2\n", "key SEED is there twice"),
        ("SOLVER: {MAX_ITER: 1, MAX_ITER: 2}\n", "key MAX_ITER is there twice"),
        ("1: 2\n", "key 1 is not text"),
        ("SOLVER: {BASE_LR: .nan}\n", "it holds .nan, which is no number"),
        ("SOLVER: !!python/object/apply:os.system [ls]\n", "could not determine a constructor for the tag"),
        ("SOLVER: !!python/name:os.system\n", "could not determine a constructor for the tag"),
        ("SOLVER: &a {MAX_ITER: *a}\n", "it is nested too deeply"),
        ("[1, 2]\n", "it holds no keys"),
    ],
)
def test_what_is_no_config(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = write(tmp_path, text)
    line = error(path)
    assert line.startswith(f"{path}: not a config: ") and reason in line


def test_a_large_file_is_not_parsed(tmp_path: Path) -> None:
    assert "larger than 10,000,000 bytes" in error(write(tmp_path, b"#" * 10_000_001))


_LONG = "X" * 5000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", _LONG),
        ("DATASETS.TRAIN", f"({_LONG!r}, 1)"),
        (_LONG, "1"),
        (f"MODEL.{_LONG}", "1"),
        ("FEW_SHOT.TEST.SHOTS", f"('{_LONG}',)"),
    ],
)
def test_names_are_cut(tmp_path: Path, key: str, value: str) -> None:
    assert _LONG[:400] not in error(write(tmp_path, "SEED: 1\n"), key, value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.TRAIN", "(1,)", "DATASETS.TRAIN takes text, not 1"),
        ("DATASETS.TEST", "('a', ('b', None))", "DATASETS.TEST takes text, not None"),
        ("FEW_SHOT.TEST.SHOTS", "('one',)", "FEW_SHOT.TEST.SHOTS takes numbers, not 'one'"),
        ("INPUT.FEW_SHOT_SIZE", "('a', 'b')", "INPUT.FEW_SHOT_SIZE takes numbers, not 'a'"),
        ("MODEL.PIXEL_MEAN", "[1.0]", "MODEL.PIXEL_MEAN [1.0] must be 3 numbers"),
        ("INPUT.FEW_SHOT_SIZE", "(32,)", "INPUT.FEW_SHOT_SIZE (32,) must be 2 numbers"),
        ("TEST.EVALUATORS", "(5,)", "TEST.EVALUATORS takes text, not 5"),
        ("MODEL.WEIGHTS", "[]", "MODEL.WEIGHTS takes text, not []; put it in quotes"),
        ("MODEL.WEIGHTS", "None", "MODEL.WEIGHTS has no value; give one, or remove the key"),
        ("SOLVER.BASE_LR", "{[]: 1}", "SOLVER.BASE_LR takes a number, not '{[]: 1}'"),
        ("SOLVER.MAX_ITER", "1.5", "SOLVER.MAX_ITER takes a whole number, not 1.5"),
        ("SOLVER.AMP.ENABLED", "1", "SOLVER.AMP.ENABLED takes True or False, not 1"),
        ("SOLVER.STEPS", "3", "SOLVER.STEPS takes a list, not 3; write (3,)"),
        ("SEED", "4294967296", "SEED 4294967296 must be below 2**32"),
        ("SOLVER.BASE_LR", "[" * 10_000 + "]" * 10_000, "SOLVER.BASE_LR"),
    ],
)
def test_values_of_another_type(tmp_path: Path, key: str, value: str, message: str) -> None:
    assert message in error(write(tmp_path, "SEED: 1\n"), key, value)


def test_values_of_another_type_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "FEW_SHOT: {TEST: {SHOTS: [one]}}\n")
    assert error(path) == f"{path}: FEW_SHOT.TEST.SHOTS takes numbers, not 'one'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (  # the inner group is replaced by what it stands for before it is read itself
            "SEED: 1\nGLOBAL:\n  INNER: &one {AAA: 1}\nTEST: {PICTURES: 3}\n"
            "MODEL:\n  DEEP: {B: &two {<<: *one, AAA: 2}}\nSOLVER: {<<: *two}\n",
            {"AAA": 2},
        ),
        ("_BASE_: base.yaml\nSOLVER:\n", {"BASE_LR": 0.5}),
        ("_BASE_: [empty.yaml, base.yaml]\nSOLVER: {MAX_ITER: 3}\n", {"BASE_LR": 0.5, "MAX_ITER": 3}),
    ],
)
def test_anchors_and_groups_without_keys(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    write(tmp_path, "SOLVER: {BASE_LR: 0.5}\n", "base.yaml")
    write(tmp_path, "SOLVER:\n", "empty.yaml")
    assert read_yaml(write(tmp_path, text))["SOLVER"] == expected


def test_what_people_write_instead(tmp_path: Path) -> None:
    """Whole and real numbers for each other, a group whose keys are commented out, UTF-16, a folder 2024."""
    path = write(tmp_path, "MODEL:\nSOLVER: {BASE_LR: 1, MAX_ITER: 1e3, STEPS: '(5, 6)'}\n")
    Path(path).write_bytes(Path(path).read_text().encode("utf-16"))
    cfg = load_config(path, ["OUTPUT_DIR", "2024"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (1.0, 1000, (5, 6))
    assert (type(cfg.SOLVER.BASE_LR), type(cfg.SOLVER.MAX_ITER), cfg.OUTPUT_DIR) == (float, int, "2024")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {WEIGHTS: }\n", "MODEL.WEIGHTS has no value; give one, or remove the key"),
        ("OUTPUT_DIR: 2024\n", "OUTPUT_DIR takes text, not 2024; put it in quotes"),
        ("SOLVER.BASE_LR: 0.1\n", "write SOLVER.BASE_LR as a key in its group, `MODEL: {WEIGHTS: x}`"),
        (
            "INPUT: {MIN_SIZE_TRAIN: (640, 672)}\n",
            "INPUT.MIN_SIZE_TRAIN takes a list, not '(640'; write ('(640',)",
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert error(path) == f"{path}: {message}"


def test_an_address_of_detectron2_whose_file_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.delenv(DOWNLOAD_VARIABLE, raising=False)
    path = write(tmp_path, "MODEL: {WEIGHTS: 'detectron2://a/b.pkl'}\n")
    assert "MODEL.WEIGHTS detectron2://a/b.pkl is an address" in error(path)
    (tmp_path / "detectron2" / "a").mkdir(parents=True)
    (tmp_path / "detectron2" / "a" / "b.pkl").write_bytes(b"weights")
    assert load_config(path).MODEL.WEIGHTS == "detectron2://a/b.pkl"
    assert local_file("detectron2://a/b.pkl", "KEY") == str(tmp_path / "detectron2" / "a" / "b.pkl")
