"""The grammar of mask_values."""

from typing import Any

import pytest

from fss_d2.data.mask_values import MaskRule, parse_mask_values


@pytest.mark.parametrize(
    ("given", "objects", "ignored"),
    [
        ("7", {7}, set()),
        (7, {7}, set()),
        ([1, 2], {1, 2}, set()),
        ("1,2,5-7", {1, 2, 5, 6, 7}, set()),
        ("15 ignore=255", {15}, {255}),
        ("ignore=0,255 15", {15}, {0, 255}),
        ("15 Ignore = 255", {15}, {255}),
        ("#ff0000,#00FF00 ignore=#ffffff", {(255, 0, 0), (0, 255, 0)}, {(255, 255, 255)}),
    ],
)
def test_values_of_all_classes(given: Any, objects: set, ignored: set) -> None:
    rule = parse_mask_values(given).of("cup")
    assert rule is not None and (set(rule.objects), set(rule.ignored)) == (objects, ignored)
    assert rule.names_object and rule == parse_mask_values(rule.text).of()


def test_rules_by_class() -> None:
    for given in (
        "cup = 1,2; my key=15 ignore=255; Bright",
        ["cup=1,2", "my key=15 ignore=255", "bright"],
        {"cup": [1, 2], "my key": "15 ignore=255", "": "bright"},
    ):
        rules = parse_mask_values(given)
        assert rules.of("cup") == MaskRule(objects=frozenset({1, 2}), text="1,2")
        assert rules.of("my key").ignored == {255}
        assert rules.of("other").word == rules.of().word == "bright"
        rules.check_classes(["my key", "cup"])
        with pytest.raises(
            ValueError, match=r"^mask_values names the class 'cup', but the classes are key, pot$"
        ):
            rules.check_classes(["key", "pot"])
    assert parse_mask_values(None).of("cup") is None
    assert parse_mask_values("cup=1").of("key") is None


def test_a_frame_alone_leaves_the_values_to_be_recognised() -> None:
    rule = parse_mask_values("cup=auto frame=stored").of("cup")
    assert rule is not None and rule.frame == "stored" and not rule.names_object
    assert parse_mask_values("1 frame=upright").of().frame == "upright"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("one", r"'one': 'one' is no number or colour"),
        ("1,,2", "'' is no number"),
        ("5-2", "5-2 is empty or too long"),
        ("0-99999999", "empty or too long"),
        ("1 ignore=1", "1 is both object and ignored"),
        ("1,#ff0000", "mixes numbers and colours"),
        ("1 ignore=#ff0000", "mixes numbers and colours"),
        ("ignore=255", "names no object"),
        ("1 frame=up", "frame 'up' is neither upright nor stored"),
        ("cup=1;cup=2", "the class 'cup' is given twice"),
        (["1", "2"], "a rule for all classes is given twice"),
        ("1 ignore=0 ignore=255", "ignore is given twice"),
        ("red", "'red' is no number or colour .#rrggbb., and none of nonzero, bright, dark, opaque"),
        ("-1", "'-1' is no number"),
        ("#ff00", "'#ff00' is no number or colour"),
        (1.5, "1.5"),
        ({"cup": None}, "None"),
    ],
)
def test_other_texts_are_refused(given: Any, message: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^mask_values .*{message}.*; give \[CLASS=\]OBJECT|^mask_values {message}: give"
    ):
        parse_mask_values(given)
