"""Episodes and manifests: round trip, atomic writing, and errors that name file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from fss_d2.data.episode import (
    Episode,
    donors_of,
    episode_seed,
    read_manifest,
    read_manifest_header,
    write_manifest,
)

NAMES = ["cat", "dog", "blåhaj"]
EPISODES = [
    Episode(0, 2, "a", ("b", "c"), episode_seed(7, 0)),
    Episode(1, 0, 5, ("b", "b"), episode_seed(7, 1)),
]
RECORDS: list[dict[str, Any]] = [
    {"image_id": "a", "classes": [2]},
    {"image_id": "b", "classes": [0, 2]},
    {"image_id": "c", "classes": [2]},
    {"image_id": 5, "classes": [0]},
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "manifest.jsonl"
    write_manifest(path, EPISODES, dataset="toy_val", class_names=NAMES, seed=7, query_rule="pair")
    return path


def test_round_trip_keeps_ids_types_order_and_seeds(manifest: Path) -> None:
    read = read_manifest(manifest, dataset="toy_val", records=RECORDS, class_names=NAMES)
    assert read == EPISODES
    assert isinstance(read[1].query, int) and isinstance(read[0].query, str)


def test_a_class_that_only_queries_show_is_accepted(manifest: Path) -> None:
    records = [*RECORDS[:3], {"image_id": 5, "classes": [1], "query_classes": [0, 1]}]
    assert read_manifest(manifest, records=records) == EPISODES


def test_file_layout_is_header_then_one_json_object_a_line(manifest: Path) -> None:
    header, first, _ = (json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines())
    assert header == read_manifest_header(manifest)
    assert header == {
        "manifest_version": 1,
        "dataset": "toy_val",
        "shots": 2,
        "seed": 7,
        "query_rule": "pair",
        "episodes": 2,
    }
    assert first == {"class_id": 2, "class_name": "blåhaj", "query": "a", "supports": ["b", "c"]}


def test_failed_write_keeps_the_old_file_and_leaves_nothing_behind(manifest: Path) -> None:
    before = manifest.read_bytes()
    unwritable = [Episode(0, 0, object(), (1,))]  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_manifest(manifest, unwritable, dataset="toy_val", class_names=NAMES)
    assert manifest.read_bytes() == before
    assert list(manifest.parent.iterdir()) == [manifest]


@pytest.mark.parametrize("episodes", [[], [EPISODES[0], Episode(1, 0, 5, ("b",))]])
def test_writing_needs_one_number_of_shots(tmp_path: Path, episodes: list[Episode]) -> None:
    with pytest.raises(ValueError, match="one number of shots"):
        write_manifest(tmp_path / "m.jsonl", episodes, dataset="d", class_names=NAMES)
    assert not list(tmp_path.iterdir())


def test_seeds_differ_between_indices_and_base_seeds() -> None:
    seeds = {episode_seed(s, i) for s in range(20) for i in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


def _edit(manifest: Path, line: int, text: str) -> None:
    lines = manifest.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(**changes: Any) -> str:
    row = {"class_id": 2, "class_name": "blåhaj", "query": "a", "supports": ["b", "c"], **changes}
    return json.dumps({key: value for key, value in row.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"class_id": 2, ', "not JSON"),
        ("[1, 2]", "expected a JSON object, got list"),
        (_row(query=None), "key 'query' is missing"),
        (_row(class_id="2"), "'class_id' has a value of the wrong type: '2'"),
        (_row(class_id=True), "'class_id' has a value of the wrong type: True"),
        (_row(supports="bc"), "'supports' has a value of the wrong type"),
        (_row(supports=["b", 1.5]), "'supports' has a value of the wrong type: 1.5"),
        (_row(supports=["b"]), "1 supports, the header says 2"),
        (_row(supports=["b", "a"]), "query 'a' is among its own supports"),
        (_row(class_id=3), "class_id 3 is not one of the 3 classes"),
        (_row(class_name="dog"), "class 2 is 'blåhaj' here, not 'dog'"),
        (_row(query="z"), "image 'z' is not in the dataset"),
        (_row(query=5), "image 5 does not show class 2"),
    ],
)
def test_wrong_episode_is_named_by_file_and_line(manifest: Path, text: str, message: str) -> None:
    _edit(manifest, 2, text)
    with pytest.raises(ValueError) as error:
        read_manifest(manifest, records=RECORDS, class_names=NAMES)
    assert str(error.value).startswith(f"{manifest}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def _header(**changes: Any) -> str:
    header = {
        "manifest_version": 1,
        "dataset": "d",
        "shots": 1,
        "seed": 0,
        "query_rule": "class",
        "episodes": 2,
    }
    return json.dumps({**header, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{}", "'manifest_version' is missing"),
        (_header(manifest_version=9), "manifest_version 9 is unknown, expected 1"),
        (_header(episodes=0), "needs one episode and one shot or more"),
        (_header(seed="x"), "'seed' has a value of the wrong type: 'x'"),
    ],
)
def test_wrong_header_is_named_by_file_and_line(manifest: Path, text: str, message: str) -> None:
    _edit(manifest, 1, text)
    with pytest.raises(ValueError, match=message) as error:
        read_manifest(manifest)
    assert str(error.value).startswith(f"{manifest}:1: ")


def test_manifest_of_another_dataset_is_refused(manifest: Path) -> None:
    with pytest.raises(ValueError, match="written for dataset 'toy_val', not 'other'"):
        read_manifest(manifest, dataset="other")


def test_truncated_manifest_is_refused(manifest: Path) -> None:
    manifest.write_text("\n".join(manifest.read_text(encoding="utf-8").splitlines()[:2]), encoding="utf-8")
    with pytest.raises(ValueError, match="header says 2 episodes, the file has 1"):
        read_manifest(manifest)


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl does not exist"):
        read_manifest(tmp_path / "nowhere.jsonl")
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match="binary: not a manifest"):
        read_manifest(tmp_path / "binary")


def episodes_of(*entries: tuple[int, str, str]) -> list[Episode]:
    """Episodes of (class id, query, support)."""
    return [Episode(i, class_id, query, (support,)) for i, (class_id, query, support) in enumerate(entries)]


def test_the_next_of_another_class_round_the_list() -> None:
    episodes = episodes_of((0, "a", "b"), (0, "b", "c"), (1, "x", "y"), (0, "c", "a"), (2, "p", "q"))
    assert [donor.index for donor in donors_of(episodes)] == [2, 2, 3, 4, 0]


def test_the_query_is_never_its_own_support() -> None:
    episodes = episodes_of((0, "a", "b"), (1, "x", "a"), (1, "y", "x"))
    assert [donor.index for donor in donors_of(episodes)] == [2, 0, 0]
    with pytest.raises(ValueError, match="episode 0: every episode of another class has its query 'a'"):
        donors_of(episodes[:2])


def test_one_class_has_none() -> None:
    with pytest.raises(ValueError, match=r"all 2 episodes are of one class, .* choose a data set of two"):
        donors_of(episodes_of((3, "a", "b"), (3, "b", "a")))
