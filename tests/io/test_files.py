"""Atomic writes, JSON in and out, names that users give."""

import ast
import json
import os
from pathlib import Path

import pytest

import fss_d2
from fss_d2.io.files import (
    atomic_path,
    check_writable,
    expand_user,
    is_half_written,
    json_text,
    parse_json,
    printable,
    read_json,
    read_json_object,
    shortened,
    write_atomic,
    write_json,
)


def test_write_atomic_makes_the_folder_and_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f"
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_renaming_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_known(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.b.json") as temporary:
        assert is_half_written(temporary)
        temporary.write_bytes(b"")
    assert not any(is_half_written(tmp_path / name) for name in ("a.json", ".a.tmp", "a.1.tmp", ".a.x.tmp"))


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is not valid JSON"), (b"\xff", "is not"), (b"3", "number")]
)
def test_json_that_is_no_object_is_an_error_of_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*x\.json .*{message}.*; fix it$") as caught:
        read_json_object(tmp_path / "x.json", "fix it")
    assert "\n" not in str(caught.value)


def test_any_name_can_be_printed() -> None:
    assert printable("日本/a b.jpg") == "日本/a b.jpg"
    assert printable(Path(os.fsdecode(b"bad\xff.jpg"))) == r"bad\udcff.jpg"


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to the output folder .*file.* choose another"):
        check_writable(tmp_path / "file" / "below")


def test_a_long_name_is_written_all_the_same(tmp_path: Path) -> None:
    """255 bytes are the limit of file systems, and the temporary file's name is longer."""
    name = "ü" * 127
    with atomic_path(tmp_path / name) as temporary:
        assert is_half_written(temporary)
        temporary.write_bytes(b"content")
    assert (tmp_path / name).read_bytes() == b"content"


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand_user("~/a b") == expand_user(Path("~/a b")) == str(tmp_path / "a b")
    assert expand_user("~") == str(tmp_path)
    for kept in ("a/~/b", "./~", "https://host/~me/a.pth", "", "/a"):
        assert expand_user(kept) == kept
    with pytest.raises(ValueError, match=r"^~nobody-here/x: ~nobody-here is not a home folder; \./~nobody-h"):
        expand_user("~nobody-here/x")
    (tmp_path / "~a.jpg").write_bytes(b"")
    assert expand_user("~a.jpg") == "~a.jpg"


def test_names_in_messages_are_short_and_on_one_line() -> None:
    assert shortened("日本") == "日本"
    assert shortened("a\nb\x1b[2J\u2028c") == r"a\nb\x1b[2J\u2028c"
    assert shortened(Path(os.fsdecode(b"bad\xff.jpg"))) == r"bad\udcff.jpg"
    assert shortened("x" * 200) == "x" * 200
    assert shortened("x" * 201) == "x" * 197 + "..."
    assert shortened(12) == "12"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scores": [{"a": 1.0}, {"a": float("nan")}]}, r"^scores\[1\]\.a is nan, which JSON cannot hold; "),
        ([1, (2.0, float("-inf"))], r"^\[1\]\[1\] is -inf, "),
        (float("inf"), "^the content is inf, "),
    ],
)
def test_json_that_is_written_has_no_nan(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_json(tmp_path / "x.json", content)
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_as_python_writes_it(tmp_path: Path) -> None:
    content = {"ä": [1, 2.5, None, True, "\udcff"]}
    write_json(tmp_path / "x.json", content)
    assert (tmp_path / "x.json").read_text() == json.dumps(content, indent=2) + "\n"
    assert read_json(tmp_path / "x.json") == content
    assert (
        json_text(content, sort_keys=True, separators=(",", ":")) == r'{"\u00e4":[1,2.5,null,true,"\udcff"]}'
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_of_any_unicode_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes('{"größe": 1}'.encode(encoding))
    assert read_json_object(tmp_path / "x.json", "fix it") == {"größe": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b" \n", "it is empty"),
        (b'{"a": NaN}', "it holds NaN; JSON has no such number"),
        (b"[-Infinity]", "it holds -Infinity; JSON has no such number"),
        (b"[1e999]", "its number 1e999 is too large"),
        (b"[" + b"9" * 5000 + b"]", "its number 99999999999999999999... has more than 64 bits"),
        (b"[18446744073709551616]", "its number 18446744073709551616 has more than 64 bits"),
        (b'[{"id": 1, "id": 2}]', "the key 'id' stands twice in one object"),
        (b"[" * 100_000, "its brackets are nested too deeply"),
        (b'{"a":' * 100_000, "its brackets are nested too deeply"),
        ("größe".encode("latin-1"), "it is not UTF-8 text: byte 3 is 0xf6; save it as UTF-8"),
        (b"\xff\xfe{", "it is not UTF-16 text: byte 3 is 0x7b; save it as UTF-8"),
        (b'{"a": [1, 2', "Expecting ',' delimiter: line 1 column 12 (char 11)"),
        (b"\x89PNG\r\n\x1a\n", "it is not UTF-8 text: byte 1 is 0x89; save it as UTF-8"),
    ],
)
def test_what_is_not_json_is_an_error_of_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^.* is not valid JSON .*$") as caught:
        read_json_object(path, "fix it")
    assert str(caught.value) == f"{path} is not valid JSON ({reason}); fix it"


@pytest.mark.parametrize(
    ("content", "kind"),
    [("[]", "list"), ('"a"', "string"), ("null", "null"), ("false", "boolean"), ("2.5", "number")],
)
def test_json_of_another_type_is_an_error_of_one_line(content: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 200 + ".json")
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_json_object(path, "fix it")
    assert str(caught.value) == f"{str(path)[:197]}... holds a JSON {kind}, not an object; fix it"
    assert parse_json(content, "line 1") == json.loads(content)


def test_numbers_that_callers_check_themselves() -> None:
    assert parse_json("[1e999, -Infinity, 18446744073709551616]", any_number=True) == [
        float("inf"),
        float("-inf"),
        2**64,
    ]
    with pytest.raises(ValueError, match=r"^the key 'a' stands twice in one object$"):
        parse_json('{"a": 1, "a": NaN}', any_number=True)


def test_json_is_read_and_written_in_one_place() -> None:
    """So that no reader takes NaN or a key that stands twice, and no file holds NaN."""
    elsewhere = {
        "io/files.py": "that place",
        "app/guard.py": "bodies of requests",
        "engine/errors.py": "the error file of torchrun, a text in an object",
        "engine/train_loop.py": "lines that Detectron2 wrote",
        "engine/base_prototypes.py": "a digest, no file",
        "engine/feature_cache.py": "a digest, no file",
        "data/feature_store.py": "a digest, no file",
    }
    package = Path(fss_d2.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "json"
            ):
                found.add(path.relative_to(package).as_posix())
    assert found == elsewhere.keys()
