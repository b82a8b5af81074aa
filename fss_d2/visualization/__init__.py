"""Pictures of episodes and proposals, drawn by Detectron2's Visualizer and laid out in rows and grids."""

from .episodes import episode_panel
from .proposals import proposal_grid, proposal_panel
from .tiles import (
    IGNORE_COLOR,
    PREDICTION_COLOR,
    SUBTRACTED_COLOR,
    SUPPORT_COLOR,
    TRUTH_COLOR,
    draw_mask,
    picture_grid,
    save_picture,
)

__all__ = [
    "IGNORE_COLOR",
    "PREDICTION_COLOR",
    "SUBTRACTED_COLOR",
    "SUPPORT_COLOR",
    "TRUTH_COLOR",
    "draw_mask",
    "episode_panel",
    "picture_grid",
    "proposal_grid",
    "proposal_panel",
    "save_picture",
]
