"""Pictures and regions of a visitor that do not show the object."""

from pathlib import Path

import numpy as np
import pytest

from fss_d2.app.events import support_view
from fss_d2.app.session import Session
from fss_d2.inference.annotations import Box
from tests.app.pages import LIMITS, disc, disc_mask, make_pool, save
from tests.app.test_session import ask, layer, show

METHOD = "Prototype"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(make_pool(METHOD), LIMITS, tmp_path / "served")


def add(session: Session, folder: Path, name: str, class_name: str = "object") -> None:
    session.add_supports([save(folder / name, disc(75, 50))], class_name)


def test_a_whole_picture_or_a_part(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path)
    add(session, tmp_path, "a.png")
    session.supports.mark_absent()
    add(session, tmp_path, "b.png")
    session.supports.mean_negative(True)
    session.supports.add_box(Box(0, 0, 10, 5))
    (whole, mask), (part, region) = session.supports.negatives()["object"]
    np.testing.assert_array_equal(whole, disc(75, 50))
    np.testing.assert_array_equal(part, disc(75, 50))
    assert mask.all() and mask.shape == (90, 120)
    np.testing.assert_array_equal(region, Box(0, 0, 10, 5).mask(90, 120))
    images, masks = session.supports.classes()["object"]
    assert len(images) == 1 and (masks[0] == disc_mask(40, 40)).all()
    gallery, _, _, _, meaning, status = support_view(session)
    assert [caption for _, caption in gallery["value"]] == ["✓ object", "✗ not object", "✗ not object"]
    assert meaning == "not the object"
    assert status == "Picture 3 of 3, b.png, is marked where it does not show object; 3 marked in all."


def test_what_a_mark_means_can_change_and_be_removed(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path)
    supports = session.supports
    before = supports.revision
    supports.mean_negative(True)
    assert supports.revision > before and supports.class_names == []
    with pytest.raises(ValueError, match="no object is marked yet"):
        supports.classes()
    supports.mean_negative(False)
    assert supports.class_names == ["object"] and supports.negatives() == {}
    supports.mark_absent()
    supports.unmark()
    assert supports.open.mask is None and not supports.open.negative
    supports.paint([layer(disc_mask(40, 40))])
    assert supports.class_names == ["object"]


def test_a_name_that_no_example_has_stands_for_all(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path, name="cup")
    add(session, tmp_path, "a.png")
    session.supports.mark_absent()
    assert list(session.supports.negatives()) == [""]
    session.supports.name_class("cup")
    assert list(session.supports.negatives()) == ["cup"]


def test_they_reach_the_method_and_change_what_is_found(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path)
    ask(session, tmp_path, "q.png")
    session.find(METHOD)
    before = session.finding(METHOD, 0.5, 0)
    assert before.presence and before.areas and before.areas["object"] > 0
    add(session, tmp_path, "a.png")
    session.supports.mark_absent()  # the picture that is searched
    assert session.drop_outdated()
    session.find(METHOD)
    after = session.finding(METHOD, 0.5, 0)
    assert after.presence and after.presence["object"] < before.presence["object"]
    predictor = session.pool.predictor(METHOD)
    predictor.set_support(disc(40, 40), disc_mask(40, 40))
    predictor.add_negative(disc(75, 50))
    assert after.presence == predictor.predict(disc(75, 50)).presence
    session.supports.remove()
    session.find(METHOD)
    assert session.finding(METHOD, 0.5, 0).presence == before.presence


def test_the_limit_of_presence(session: Session, tmp_path: Path) -> None:
    """The network does not run again, and what was corrected by hand stays."""
    show(session, tmp_path)
    ask(session, tmp_path, "q.png", "r.png")
    session.find(METHOD)
    found = session.finding(METHOD, 0.5, 0)
    assert found.presence and found.areas
    probability = found.presence["object"]
    session.fix(METHOD, 0.5, 1, "object", [layer(disc_mask(30, 30))])
    session.present_above = probability + 1e-6
    absent = session.finding(METHOD, 0.5, 0)
    assert absent.areas == {"object": 0} and absent.presence == found.presence
    assert absent.expected == {"object": 1 - probability}
    assert absent.needs_review == (1 - probability < 0.65)
    fixed = session.finding(METHOD, 0.5, 1)
    assert fixed.areas and fixed.areas["object"] > 0 and fixed.presence == {"object": 1.0}
    session.present_above = probability
    assert session.finding(METHOD, 0.5, 0).areas == found.areas


def test_an_emptied_mask_says_that_it_is_not_there(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path)
    ask(session, tmp_path, "q.png")
    session.find(METHOD)
    session.fix(METHOD, 0.5, 0, "object", [])
    finding = session.finding(METHOD, 0.5, 0)
    assert finding.areas == {"object": 0} and finding.presence == {"object": 0.0}
    assert finding.expected == {"object": 1.0} and finding.accepted and not finding.needs_review
