"""Pictures of episodes, proposals and a method's inner maps, drawn with Detectron2 and matplotlib."""

from .episodes import episode_panel
from .figures import (
    activation_figure,
    aggregated_figure,
    agnostic_figure,
    attention_figure,
    embed_tsne,
    tsne_figure,
)
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
    "activation_figure",
    "aggregated_figure",
    "agnostic_figure",
    "attention_figure",
    "draw_mask",
    "embed_tsne",
    "episode_panel",
    "picture_grid",
    "proposal_grid",
    "proposal_panel",
    "save_picture",
    "tsne_figure",
]
