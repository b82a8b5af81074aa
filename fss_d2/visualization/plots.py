"""Plots of numbers, by matplotlib: points of t-SNE, and lines."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["embed_tsne", "line_figure", "tsne_figure"]

_DPI = 96
_LEGEND_LINE = 20  # pixels of the legend's height for each entry
_REGIONS = (("object", "tab:blue", True), ("background", "tab:red", False))

Line = tuple[Sequence[float], Sequence[float]]  # x and y


def embed_tsne(features: np.ndarray, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE of unit vectors (van der Maaten and Hinton, 2008), by scikit-learn.

    Args:
        features: (N, C), N >= 4; scaled to unit length first.
        perplexity: roughly the number of neighbours of a point; at most (N - 1) / 3 is used.

    Returns:
        (N, 2) float32.
    """
    if len(features) < 4:
        raise ValueError(f"t-SNE of {len(features)} points: give at least 4")
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError("t-SNE needs the package scikit-learn: pip install -e '.[figures]'") from error
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)
    perplexity = min(perplexity, (len(unit) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit.astype(np.float32))


def tsne_figure(
    panels: Mapping[str, np.ndarray], shows_object: Sequence[bool], *, side: int = 512
) -> np.ndarray:
    """Scatter points side by side: blue shows the object, red the background (DCAMA, Fig. S6).

    Args:
        panels: title -> (N, 2), the same N points in each.
        shows_object: N of True and False.
        side: of a square panel, pixels.

    Returns:
        (side + legend, panels * side, 3) uint8.
    """
    inside = np.asarray(shows_object, bool)
    if wrong := [title for title, points in panels.items() if len(points) != len(inside)]:
        raise ValueError(
            f"{len(inside)} labels for {len(panels[wrong[0]])} points of {wrong[0]}: give as many"
        )
    figure, axes = _figure(list(panels), side, side + 2 * _LEGEND_LINE)
    for place, points in zip(axes, panels.values(), strict=True):
        place.set(xticks=[], yticks=[])
        for name, color, value in _REGIONS:
            place.scatter(*points[inside == value].T, s=9, color=color, label=name)
    return _drawn(figure, dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True)), 2)


def line_figure(
    panels: Mapping[str, Mapping[str, Line]], *, x: str, y: str = "", height: int = 384
) -> np.ndarray:
    """Lines side by side; a name has the same colour in all panels.

    Args:
        panels: title -> name -> the line's points.
        x, y: what the axes show.
        height: of a panel, pixels; it is 4/3 as wide.

    Returns:
        (height + legend, panels * 4/3 * height, 3) uint8.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure, axes = _figure(list(panels), round(4 / 3 * height), height + _LEGEND_LINE * len(names))
    handles = {}
    for place, lines in zip(axes, panels.values(), strict=True):
        place.set(xlabel=x, ylabel=y)
        for name, (xs, ys) in lines.items():
            color = f"C{names.index(name) % 10}"
            (handles[name],) = place.plot(xs, ys, marker=".", color=color, label=name)
        place.set_ylim(bottom=0)
    return _drawn(figure, handles, 1)


def _figure(titles: Sequence[str], width: int, height: int) -> tuple[Figure, list]:
    """A figure of panels side by side, each of a width in pixels."""
    if not titles:
        raise ValueError("there is nothing to plot: give at least one panel")
    size = (len(titles) * width / _DPI, height / _DPI)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for place, title in zip(axes, titles, strict=True):
        place.set_title(title, fontsize="medium", wrap=True)
    return figure, axes


def _drawn(figure: Figure, handles: Mapping[str, object], columns: int) -> np.ndarray:
    """The pixels, with a legend below."""
    figure.legend(handles.values(), handles, loc="outside lower center", fontsize="small", ncols=columns)
    figure.canvas.draw()
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[:, :, :3])
