"""The folder of a job: which job owns it, and which files are the job's own."""

import json
from pathlib import Path

import pytest

from fss_d2.label.output import OutputFolder


def written(folder: Path, names: str) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in names.split()}


def test_a_kill_before_the_first_file_leaves_the_folder_free(tmp_path: Path) -> None:
    (tmp_path / ".job.json.123.tmp").write_bytes(b"{")
    assert not OutputFolder(tmp_path).claim({"a": 1})
    assert OutputFolder(tmp_path).claim({"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["job.json"]


def test_what_a_killed_run_wrote_is_the_jobs_own(tmp_path: Path) -> None:
    """It was killed after it replaced a file; before it goes on, the labels change again."""
    folder = OutputFolder(tmp_path)
    folder.write([("png/a", b"1"), ("png/b", b"1")])

    def killed() -> object:
        yield "png/a", b"2"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write(killed())
    with (tmp_path / "writing.jsonl").open("a") as log:
        log.write('\n["png/b", "12')  # and this line was cut off
    assert folder.write([("png/a", b"3"), ("png/b", b"3")]) == []
    assert written(tmp_path, "png/a png/b") == {"png/a": "3", "png/b": "3"}
    assert {p.name for p in tmp_path.iterdir()} == {"png", "written.json"}


def test_what_others_wrote_or_edited_stays(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    folder.write([("png/a", b"1"), ("png/b", b"1")])
    (tmp_path / "png/a").write_text("edited")
    (tmp_path / "png/c").write_text("foreign")
    for _ in range(2):
        assert folder.write([(f"png/{name}", b"2") for name in "abc"]) == ["png/a", "png/c"]
    assert written(tmp_path, "png/a png/b png/c") == {"png/a": "edited", "png/b": "2", "png/c": "foreign"}
    (tmp_path / "png/a").write_text("1")  # the edit was taken back
    assert folder.write([("png/a", b"2")]) == []
    assert (tmp_path / "png/a").read_text() == "2"


def test_files_that_do_not_come_again_are_deleted(tmp_path: Path) -> None:
    """Files of formats that were not asked for stay, and so do edited files."""
    folder = OutputFolder(tmp_path)
    names = ("png/a", "png/b", "png/edited", "yolo/labels/a", "page")
    folder.write([(name, b"1") for name in names])
    (tmp_path / "png/edited").write_text("edited")
    (tmp_path / "png/foreign").write_text("foreign")
    folder.write([("png/a", b"1")])
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"png/a", "png/edited", "png/foreign", "yolo/labels/a", "page", "written.json"}
    assert json.loads((tmp_path / "written.json").read_bytes()).keys() == {*names} - {"png/b"}


@pytest.mark.parametrize("name", ["job.json", "written.json"])
def test_a_damaged_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    folder.claim({})
    (tmp_path / name).write_text("[")
    with pytest.raises(ValueError, match=rf"{name} is not valid JSON .*give another output folder"):
        folder.claim({})
        folder.write([])
