"""Pictures of episodes, proposals and a method's inner maps, drawn with Detectron2 and matplotlib."""

from .colors import class_color, class_css
from .figures import (
    activation_figure,
    aggregated_figure,
    agnostic_figure,
    alignment_figure,
    attention_figure,
)
from .panels import (
    attention_panel,
    class_map_png,
    episode_panel,
    prediction_panel,
    save_episode_panel,
)
from .plots import embed_tsne, line_figure, tsne_figure
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

__all__ = ["IGNORE_COLOR", "PREDICTION_COLOR", "SUBTRACTED_COLOR", "SUPPORT_COLOR", "TRUTH_COLOR"]
__all__ += ["activation_figure", "aggregated_figure", "agnostic_figure", "alignment_figure"]
__all__ += ["attention_figure", "line_figure"]
__all__ += ["attention_panel", "class_color", "class_css", "class_map_png", "draw_mask", "embed_tsne"]
__all__ += [
    "episode_panel",
    "picture_grid",
    "prediction_panel",
    "proposal_grid",
    "proposal_panel",
    "save_episode_panel",
]
__all__ += ["save_picture", "tsne_figure"]
