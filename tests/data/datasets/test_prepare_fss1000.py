from pathlib import Path

import pytest
from PIL import Image

from fss_d2.data.datasets import fss1000
from tests.data.datasets.archives import snapshot
from tests.data.datasets.conftest import Script

OUT = "fss_d2/fss1000"


def arguments(root: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("fss1000", "--root", root, "--workers", "0", "--lists", root / "names", *more)


def test_lists_and_index(fss_root: Path, script: Script) -> None:
    assert script(*arguments(fss_root)) == 0
    assert (fss_root / OUT / "lists/train.txt").read_text() == "kite\npin\nzebra\n"
    rows = (fss_root / OUT / "index.jsonl").read_text().splitlines()
    assert rows[1] == '{"class":"apple","images":[[1,1,4],[2,1,4],[10,1,4]]}'
    assert len(rows) == 1 + 7


def test_second_run_writes_nothing_and_needs_no_lists(fss_root: Path, script: Script) -> None:
    script(*arguments(fss_root))
    before = snapshot(fss_root / OUT)
    assert script("fss1000", "--root", fss_root, "--workers", 2) == 0
    assert snapshot(fss_root / OUT) == before
    (fss_root / OUT / "index.jsonl").write_text('{"index"')  # a broken half file
    assert script("fss1000", "--root", fss_root, "--workers", 2) == 0
    after = snapshot(fss_root / OUT)
    assert {name: data for name, (_, data) in after.items()} == {n: data for n, (_, data) in before.items()}


def test_check(fss_root: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script(*arguments(fss_root))
    capsys.readouterr()
    assert script("fss1000", "--root", fss_root, "--check") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["classes", "7", "7", "same"] in lines
    assert ["test", "images", "6", "20", "DIFFERS"] in lines
    (fss_root / "fss1000/pear/2.png").unlink()
    assert script("fss1000", "--root", fss_root, "--check") == 1
    assert "pear/2.png not found: download FSS-1000" in capsys.readouterr().err


def test_errors_of_the_data(fss_root: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    def error() -> str:
        assert script(*arguments(fss_root)) == 1
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
        return line

    mask = fss_root / "fss1000/pear/2.png"
    good = mask.read_bytes()
    Image.new("L", (5, 1)).save(mask)
    assert "pear/2.png and .jpg differ in size" in error()
    mask.write_bytes(b"no image")
    assert f"{mask} is not an image" in error()
    mask.unlink()
    assert f"{mask} not found" in error()
    mask.write_bytes(good)
    (fss_root / "fss1000/empty").mkdir()
    assert "fss1000/empty holds no images" in error()
    (fss_root / "fss1000").rename(fss_root / "elsewhere")
    assert f"{fss_root / 'fss1000'} not found: download FSS-1000" in error()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("oak", "must name 2 classes"),
        ("oak oak", "must name 2 classes"),
        ("oak kite", "of no other split"),
        ("oak elm", "class 'elm' has no folder"),
    ],
)
def test_lists_are_checked(
    fss_root: Path, script: Script, capsys: pytest.CaptureFixture[str], names: str, says: str
) -> None:
    (fss_root / "names/val.txt").write_text(names)
    assert script(*arguments(fss_root)) == 1
    assert says in capsys.readouterr().err
    assert not fss1000.list_path(fss_root, "train").exists()


def test_the_first_run_needs_lists(
    fss_root: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("fss1000", "--root", fss_root, "--workers", 0) == 1
    assert "give --lists FOLDER with trn.txt, val.txt" in capsys.readouterr().err
