"""The episode, the unit of work of few-shot segmentation, and the manifest, a file of episodes."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fss_d2.io.files import atomic_path, json_text, parse_json, shortened

__all__ = [
    "Episode",
    "ImageId",
    "absent_donors_of",
    "donors_of",
    "episode_seed",
    "read_manifest",
    "read_manifest_header",
    "write_manifest",
]

ImageId = int | str

MANIFEST_VERSION = 1
_HEADER_NUMBERS, _HEADER_TEXTS = ("manifest_version", "shots", "seed", "episodes"), ("dataset", "query_rule")
_SEED_STREAM = 1  # separates the seeds of augmentations from the draws of the sampler


@dataclass(frozen=True)
class Episode:
    """One class, one query and K supports, by image ids."""

    index: int  # place in the endless (training) or finite (evaluation) list of episodes
    class_id: int  # 0-based class id of the dataset
    query: ImageId
    supports: tuple[ImageId, ...]
    seed: int = 0  # 32 bits; of all random changes to the episode's pixels
    # Of some training episodes only, never of an evaluation (`fss_d2.data.episode_kinds`):
    absent: bool = False  # the query's photograph does not show the class
    pasted: tuple[tuple[ImageId, int], ...] = ()  # (image, class id) whose object is pasted into the query


def episode_seed(seed: int, index: int) -> int:
    """Return the 32-bit seed of episode `index` of the list drawn with base seed `seed` (>= 0)."""
    return int(np.random.SeedSequence([_SEED_STREAM, seed, index]).generate_state(1)[0])


def donors_of(episodes: Sequence[Episode]) -> list[Episode]:
    """Return for each episode the next one of another class, whose supports are foreign to it.

    The search wraps round the list. Episodes that have the query among their supports are skipped. ValueError
    if an episode has no donor.
    """
    if len({episode.class_id for episode in episodes}) < 2:
        raise ValueError(
            f"all {len(episodes)} episodes are of one class, so there are no supports of another: "
            "choose a data set of two classes or more, or more episodes"
        )
    return [_donor(episodes, place) for place in range(len(episodes))]


def _donor(episodes: Sequence[Episode], place: int) -> Episode:
    episode = episodes[place]
    for step in range(1, len(episodes)):
        other = episodes[(place + step) % len(episodes)]
        if other.class_id != episode.class_id and episode.query not in other.supports:
            return other
    raise ValueError(
        f"episode {episode.index}: every episode of another class has its query {episode.query!r} among the "
        "supports; use more episodes"
    )


def absent_donors_of(
    episodes: Sequence[Episode], shows: Callable[[ImageId, int], bool]
) -> list[Episode | None]:
    """Return for each episode the next one whose query does not show its class; None where there is none.

    The search wraps round the list. Queries among the supports of the episode are skipped.

    Args:
        shows: whether an image shows a class at all, however small.
    """

    def donor(place: int) -> Episode | None:
        episode = episodes[place]
        following = (episodes[(place + step) % len(episodes)] for step in range(1, len(episodes)))
        fits = (e for e in following if e.query not in (episode.query, *episode.supports))
        return next((e for e in fits if not shows(e.query, episode.class_id)), None)

    return [donor(place) for place in range(len(episodes))]


def write_manifest(
    path: str | os.PathLike[str],
    episodes: Sequence[Episode],
    *,
    dataset: str,
    class_names: Sequence[str],
    seed: int = 0,
    query_rule: str = "class",
) -> None:
    """Write episodes, all with one number of shots, as JSON lines: a header, then one episode per line."""
    shots = {len(episode.supports) for episode in episodes}
    if len(shots) != 1:
        raise ValueError(f"{path}: a manifest needs episodes with one number of shots, got {sorted(shots)}")
    header = {"manifest_version": MANIFEST_VERSION, "dataset": dataset, "shots": shots.pop(), "seed": seed}
    header |= {"query_rule": query_rule, "episodes": len(episodes)}
    rows = (
        {"class_id": e.class_id, "class_name": class_names[e.class_id]}
        | {"query": e.query, "supports": list(e.supports)}
        for e in episodes
    )
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json_text(row, ensure_ascii=False) + "\n" for row in (header, *rows))


def read_manifest_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the first line of a manifest: dataset, shots, seed, query_rule, episodes; errors name path:1."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return _parse_header(file.readline(), f"{path}:1")
    except FileNotFoundError:
        raise FileNotFoundError(f"manifest {path} does not exist; write it or correct the path") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a manifest, the file is not UTF-8 text ({error.reason})") from error


def read_manifest(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    records: Sequence[dict[str, Any]] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[Episode]:
    """Read the episodes of a manifest, in order, and check them; errors name file:line.

    The header must name `dataset`, every image be among the dataset dicts `records` and show the episode's
    class there, and the classes have the names `class_names` (by class id); None checks nothing.
    """
    header = read_manifest_header(path)
    if dataset is not None and header["dataset"] != dataset:
        raise ValueError(f"{path}:1: written for dataset {header['dataset']!r}, not {dataset!r}")
    classes_of = None
    if records is not None:
        classes_of = {r["image_id"]: frozenset([*r["classes"], *r.get("query_classes", ())]) for r in records}
    episodes: list[Episode] = []
    with open(path, encoding="utf-8-sig", errors="backslashreplace") as file:  # other bytes are no JSON
        next(file)
        for number, line in enumerate(file, start=2):
            if line.strip():
                where = f"{path}:{number}"
                row = _parse_json(line, where)
                episodes.append(_parse_episode(row, where, len(episodes), header))
                if class_names is not None:
                    _check_class(row, where, class_names)
                if classes_of is not None:
                    _check_images(episodes[-1], where, classes_of)
    if len(episodes) != header["episodes"]:
        raise ValueError(f"{path}: header says {header['episodes']} episodes, the file has {len(episodes)}")
    return episodes


def _parse_json(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); write the manifest again") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def _require(row: dict[str, Any], key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    if key not in row:
        raise ValueError(f"{where}: key {key!r} is missing")
    if not isinstance(row[key], kinds) or isinstance(row[key], bool):
        raise ValueError(f"{where}: {key!r} has a value of the wrong type: {shortened(repr(row[key]))}")
    return row[key]


def _parse_header(line: str, where: str) -> dict[str, Any]:
    header = _parse_json(line, where)
    for key in (*_HEADER_NUMBERS, *_HEADER_TEXTS):
        _require(header, key, int if key in _HEADER_NUMBERS else str, where)
    if header["manifest_version"] != MANIFEST_VERSION:
        raise ValueError(
            f"{where}: manifest_version {header['manifest_version']} is unknown, expected {MANIFEST_VERSION}"
        )
    if header["episodes"] < 1 or header["shots"] < 1 or header["seed"] < 0:
        raise ValueError(f"{where}: needs one episode and one shot or more, and a seed that is not negative")
    return header


def _parse_episode(row: dict[str, Any], where: str, index: int, header: dict[str, Any]) -> Episode:
    class_id = _require(row, "class_id", int, where)
    query = _require(row, "query", (int, str), where)
    supports = _require(row, "supports", list, where)
    for support in supports:
        _require({"supports": support}, "supports", (int, str), where)
    if len(supports) != header["shots"]:
        raise ValueError(f"{where}: {len(supports)} supports, the header says {header['shots']}")
    if query in supports:
        raise ValueError(f"{where}: query {query!r} is among its own supports")
    return Episode(index, class_id, query, tuple(supports), episode_seed(header["seed"], index))


def _check_class(row: dict[str, Any], where: str, class_names: Sequence[str]) -> None:
    class_id = row["class_id"]
    if not 0 <= class_id < len(class_names):
        raise ValueError(f"{where}: class_id {class_id} is not one of the {len(class_names)} classes")
    if row.get("class_name", class_names[class_id]) != class_names[class_id]:
        fault = f"{where}: class {class_id} is {class_names[class_id]!r} here, not {row['class_name']!r}"
        raise ValueError(fault)


def _check_images(episode: Episode, where: str, classes_of: dict[ImageId, frozenset[int]]) -> None:
    for image in (episode.query, *episode.supports):
        if image not in classes_of:
            raise ValueError(f"{where}: image {image!r} is not in the dataset")
        if episode.class_id not in classes_of[image]:
            raise ValueError(f"{where}: image {image!r} does not show class {episode.class_id}")
