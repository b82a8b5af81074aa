"""How training-free methods compare features: pure functions of tensors."""
# ruff: noqa: F401

from .candidates import backward_votes, forward_cells, grid_mask, grown
from .clusters import average_linkage, cluster_means, cosine_kmeans
from .density import bandwidth, class_whitener, log_density, propagate
from .positions import positional_basis, without_positions
from .selection import Chosen, choose_setting
