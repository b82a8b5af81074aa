"""Episodes with the supports of another class: what a method that ignores its supports scores as well."""

from collections.abc import Callable, Sequence
from typing import Any

from .episode import Episode

__all__ = ["ForeignSupports", "donors_of"]


def donors_of(episodes: Sequence[Episode]) -> list[Episode]:
    """For each episode the next one, round the list, of another class; its supports are the foreign ones.

    One that has the query among its supports is passed over: the query with a mask would be a support.

    Raises:
        ValueError: an episode for which there is none; the message says why.
    """
    classes = {episode.class_id for episode in episodes}
    if len(classes) < 2:
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
        "supports; take more episodes"
    )


class ForeignSupports:
    """A mapper whose episodes keep query, class and truth, and take the supports of their donors.

    Args:
        mapper: loads an episode, `EpisodeMapper`.
        episodes: all that will be asked for; see `donors_of`, also for the errors.
    """

    def __init__(self, mapper: Callable[[Episode], dict[str, Any]], episodes: Sequence[Episode]) -> None:
        self._mapper = mapper
        donors = zip(episodes, donors_of(episodes), strict=True)
        self._donors = {episode.index: donor for episode, donor in donors}

    def __call__(self, episode: Episode) -> dict[str, Any]:
        """Load an episode; the keys are the mapper's, "support" shows the donor's class, in "views" too."""
        own, donor = self._mapper(episode), self._mapper(self._donors[episode.index])
        pairs = zip(own.get("views", ()), donor.get("views", ()), strict=True)
        views = [{**view, "support": theirs["support"]} for view, theirs in pairs]
        theirs = {name: donor[name] for name in ("support", "support_ids")}
        return {**own, **theirs, **({"views": views} if views else {})}
