"""Several data sets as one training set: classes of one name are one class, wherever a picture comes from."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from .catalog import get_records
from .datasets.coco2pascal import COCO_NAMES
from .masks import IGNORE

__all__ = ["annotated_classes", "training_set"]


def training_set(names: Sequence[str]) -> str:
    """Return the name of the training set of DATASETS.TRAIN: a data set, or several joined and registered.

    A joined set has the classes of the first set, then those that the others add; names that PASCAL VOC and
    COCO write differently ("sofa", "couch") are one class. Its image ids are "<set>/<image id>". Supports
    and queries may come from different sets.

    Raises:
        ValueError: no set or one twice, sets that share a photograph, a class that one set holds out and
            another trains on, or more classes than class maps can hold.
    """
    if not names:
        raise ValueError("DATASETS.TRAIN names no data set; name one or more")
    if len(names) == 1:
        return names[0]
    if len(set(names)) < len(names):
        raise ValueError(f"DATASETS.TRAIN {tuple(names)} has a set twice; name each once")
    joined = "+".join(names)
    if joined not in DatasetCatalog:
        DatasetCatalog.register(joined, partial(_load, joined, tuple(names)))
    get_records(joined)  # completes the metadata
    return joined


def annotated_classes(metadata: Metadata, record: Mapping[str, Any]) -> frozenset[int]:
    """Return the classes of a split for which a record says whether, and where, its picture shows them.

    Where a mask file shows a single class, nothing is known of the others.
    """
    if "annotations" not in record and record.get("mask_encoding", "class_map") != "class_map":
        return frozenset(record["classes"])
    of_sets = metadata.get("annotated_class_ids")
    return frozenset(of_sets[record["dataset"]] if of_sets else metadata.class_ids)


def _load(joined: str, names: Sequence[str]) -> list[dict[str, Any]]:
    parts = {name: get_records(name) for name in names}  # completes the metadata of COCO's files
    class_ids = _joint_ids(names)
    MetadataCatalog.get(joined).set(**_metadata(joined, class_ids))
    records = [_translated(record, name, class_ids[name]) for name in names for record in parts[name]]
    seen: dict[str, str] = {}
    for record in records:
        first = seen.setdefault(record["file_name"], record["dataset"])
        if first != record["dataset"]:
            both = f"{record['file_name']} is in {first} and in {record['dataset']}"
            raise ValueError(f"DATASETS.TRAIN: {both}; join sets of different photographs")
    return records


def _key(name: str) -> str:
    """What the names of one class have in common."""
    return COCO_NAMES.get(name.casefold(), name.casefold())


def _joint_ids(names: Sequence[str]) -> dict[str, list[int]]:
    """Return for each set the joint class ids of its own ids 0, 1, ..."""
    place: dict[str, int] = {}
    found = {}
    for name in names:
        own = MetadataCatalog.get(name).stuff_classes
        found[name] = [place.setdefault(_key(class_name), len(place)) for class_name in own]
        if len(set(found[name])) < len(own):
            alike = sorted(c for c in own if [_key(other) for other in own].count(_key(c)) > 1)
            raise ValueError(f"DATASETS.TRAIN: {name} has two names of one class, {alike[0]} and {alike[1]}")
    if len(place) >= IGNORE:
        raise ValueError(
            f"DATASETS.TRAIN: the sets have {len(place)} classes, at most {IGNORE - 1} can be joined"
        )
    return found


def _metadata(joined: str, class_ids: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the metadata of the joined set; ValueError if the sets divide their classes differently."""
    names: dict[int, str] = {}
    roles: dict[str, dict[int, str]] = {"class_ids": {}, "base_class_ids": {}, "novel_class_ids": {}}
    annotated = {}
    for part, joint in class_ids.items():
        metadata = MetadataCatalog.get(part)
        for class_name, class_id in zip(metadata.stuff_classes, joint, strict=True):
            names.setdefault(class_id, class_name)
        for role, found in roles.items():
            default = metadata.class_ids if role == "base_class_ids" else ()
            found.update({joint[c]: part for c in metadata.get(role, default)})
        annotated[part] = [joint[c] for c in metadata.class_ids]
    used, held_out = roles["class_ids"], roles["novel_class_ids"]
    if both := sorted(used.keys() & held_out.keys()):
        name, trains, holds_out = names[both[0]], used[both[0]], held_out[both[0]]
        fault = f"class {name!r} is held out in {holds_out} and trained in {trains}"
        raise ValueError(f"DATASETS.TRAIN: {fault}; hold it out in both")
    return {
        "stuff_classes": [names[c] for c in sorted(names)],
        **{role: sorted(found) for role, found in roles.items()},
        "annotated_class_ids": annotated,
        "ignore_label": IGNORE,
        "fold": None,
        "evaluator_type": "few_shot_seg",
        "registered_as": {"joined": joined},
    }


def _translated(record: Mapping[str, Any], dataset: str, joint: Sequence[int]) -> dict[str, Any]:
    """Return a record with joint class ids, an image id that is unique, and the name of its set."""
    changed: dict[str, Any] = {"image_id": f"{dataset}/{record['image_id']}", "dataset": dataset}
    for key in {"classes", "query_classes"} & record.keys():
        changed[key] = sorted(joint[c] for c in record[key])
    if "annotations" in record:
        changed["annotations"] = [
            {**a, "category_id": joint[a["category_id"]]} for a in record["annotations"]
        ]
    elif record.get("mask_encoding", "class_map") == "class_map":
        changed["map_classes"] = tuple(joint)  # class ids of the map's values 1, 2, ...
    return {**record, **changed}
