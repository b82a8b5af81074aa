"""Attention of the query to points and blocks of a support's object (HPAM of JC2A)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ATTENTIONS", "MERGES", "PointBlockAttention", "split_blocks", "top_blocks"]

ATTENTIONS = ("linear", "normalized_linear", "softmax", "cosine")
MERGES = ("add", "multiply", "concat")


class PointBlockAttention(nn.Module):
    """Hybrid prototype alignment of JC2A (Huang et al., 2022, Sec. 3.3), for all levels of a pyramid.

    Point to point (P2P, Eq. 1-3): every query position attends to every support position. Point to block
    (P2B, Eq. 4-9): the square blocks of the support that hold most of the object are kept; the query attends
    to them once for each offset inside a block, and the responses are averaged. Both use the same projections
    on all levels.

    The attention is linear, ReLU(Q) (softmax(K)^T V) with the softmax over the support positions, channel by
    channel: the bracket is a (C, C) matrix that needs no query. The result is linear in it, so the mean
    over the offsets of P2B is taken there, once. The projections have no bias, so a support position outside
    the object has value 0 and no influence in P2P (in P2B it still has its position embedding).

    The other kinds of Table 4: "normalized_linear" has BatchNorm(Q) instead of ReLU(Q); "softmax" is
    softmax(Q K^T / sqrt(C)) V; "cosine" is the mean over the support positions of cos(query, support) V, of
    the features themselves, without W_Q and W_K. Sums over positions are in float32, also under autocast.
    """

    def __init__(
        self,
        dim: int,
        sides: Sequence[int],
        *,
        p2p: bool = True,
        p2b: bool = True,
        block_sides: Sequence[int] = (3, 3, 3, 2),
        kept_blocks: Sequence[int] = (60, 20, 5, 3),
        attention: str = "linear",
        position_embedding: bool = True,
        merge: str = "add",
    ) -> None:
        """
        Args:
            dim: channels C.
            sides: sides b of the maps (B, C, b, b) of each level.
            p2p, p2b: use these attentions (Table 3), at least one.
            block_sides: side m of the blocks of each level, in cells; maps are zero-padded at the right and
                the bottom to whole blocks.
            kept_blocks: number k of blocks kept on each level; more than there are keeps all.
            attention: one of `ATTENTIONS` (Table 4).
            position_embedding: add learned maps (b, b), the same for all channels, before P2B (Eq. 4).
            merge: how to merge both responses: "add" (Eq. 10), "multiply" or "concat" (Table 6).

        Raises:
            ValueError: an unknown kind, neither attention, or not one positive number per level.
        """
        super().__init__()
        if attention not in ATTENTIONS or merge not in MERGES:
            raise ValueError(
                f"unknown attention {attention!r} or merge {merge!r}: choose from {', '.join(ATTENTIONS)}; "
                f"{', '.join(MERGES)}"
            )
        if not (p2p or p2b):
            raise ValueError("p2p and p2b are both False: set one of them True, or leave the attention out")
        if not len(sides) == len(block_sides) == len(kept_blocks) or min(*block_sides, *kept_blocks) < 1:
            raise ValueError(
                f"sides {tuple(sides)}, block_sides {tuple(block_sides)}, kept_blocks {tuple(kept_blocks)}: "
                "give one positive number per level in each"
            )
        self.p2p, self.p2b = p2p, p2b
        self.attention, self.merge = attention, merge
        self.blocks = tuple(zip(block_sides, kept_blocks, strict=True))
        compared = attention != "cosine"
        self.query = nn.Linear(dim, dim, bias=False) if compared else nn.Identity()
        self.key = nn.Linear(dim, dim, bias=False) if compared else nn.Identity()
        self.value = nn.Linear(dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim) if attention == "normalized_linear" else None
        embedded = sides if p2b and position_embedding else ()
        self.query_position = nn.ParameterList(0.02 * torch.randn(side, side) for side in embedded)
        self.support_position = nn.ParameterList(0.02 * torch.randn(side, side) for side in embedded)
        self.out_channels = 2 * dim if p2p and p2b and merge == "concat" else dim

    def encode(self, level: int, features: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Encode a support, independent of any query.

        Args:
            level: index of the pyramid's level.
            features: (B, C, b, b).
            mask: (B, b, b) in [0, 1].

        Returns:
            "p2p" and "p2b", if they are used: (B, C, C), or for "softmax" keys and values
            (B, 2, groups, positions, C).
        """
        masked = features * mask[:, None]
        encoded = {}
        if self.p2p:
            encoded["p2p"] = self._summarise(_tokens(masked)[:, None])
        if self.p2b:
            if len(self.support_position):
                masked = masked + self.support_position[level]
            side, kept = self.blocks[level]
            chosen = top_blocks(mask, side, kept)  # (B, k)
            blocks = split_blocks(masked, side)  # (B, blocks, m * m, C)
            index = chosen[:, :, None, None].expand(-1, -1, *blocks.shape[2:])
            encoded["p2b"] = self._summarise(blocks.gather(1, index).transpose(1, 2))
        return encoded

    def queries(self, level: int, features: Tensor) -> dict[str, Tensor]:
        """Project query features (B, C, b, b), once for all supports, to "p2p" and "p2b" (B, b * b, C)."""
        projected = {}
        if self.p2p:
            projected["p2p"] = self._activate(self.query(_tokens(features)))
        if self.p2b:
            if len(self.query_position):
                features = features + self.query_position[level]
            projected["p2b"] = self._activate(self.query(_tokens(features)))
        return projected

    def forward(self, queries: Mapping[str, Tensor], support: Mapping[str, Tensor]) -> Tensor:
        """Attend to a support.

        Args:
            queries: from `queries`.
            support: from `encode`, of the same level.

        Returns:
            (B, out_channels, b, b).
        """
        answers = [self._answer(queries[name], support[name]) for name in queries]
        if len(answers) == 1 or self.merge == "concat":
            merged = torch.cat(answers, dim=2)
        else:
            merged = answers[0] + answers[1] if self.merge == "add" else answers[0] * answers[1]
        side = round(merged.shape[1] ** 0.5)
        return merged.transpose(1, 2).unflatten(2, (side, side))

    def _summarise(self, tokens: Tensor) -> Tensor:
        """Encode support tokens (B, groups, positions, C); responses of the groups are averaged."""
        keys, values = self.key(tokens), self.value(tokens)
        if self.attention == "softmax":
            return torch.stack([keys, values], dim=1)
        if self.attention == "cosine":
            weights, count = F.normalize(keys, dim=3), tokens.shape[1] * tokens.shape[2]
        else:
            weights, count = keys.softmax(dim=2), tokens.shape[1]
        with torch.autocast(tokens.device.type, enabled=False):
            return torch.einsum("bgnc,bgnd->bcd", weights.float(), values.float()) / count

    def _activate(self, queries: Tensor) -> Tensor:
        """Apply the query function of the kind of attention to (B, N, C)."""
        if self.norm is not None:
            return self.norm(queries.flatten(0, 1)).view_as(queries)
        if self.attention == "cosine":
            return F.normalize(queries, dim=2)
        return queries.relu() if self.attention == "linear" else queries

    def _answer(self, queries: Tensor, support: Tensor) -> Tensor:
        if self.attention != "softmax":
            with torch.autocast(queries.device.type, enabled=False):
                return queries.float() @ support.float()
        keys, values = support.unbind(dim=1)  # (B, groups, positions, C)
        queries = queries[:, None].expand(-1, keys.shape[1], -1, -1)
        return F.scaled_dot_product_attention(queries, keys, values).mean(dim=1)


def top_blocks(mask: Tensor, side: int, count: int) -> Tensor:
    """Indices of the blocks that hold most of the object (Eq. 6), (B, min(count, blocks)).

    Args:
        mask: (B, h, w); cells added to complete blocks count as 0.
        side: m, side of a block in cells.
        count: k, number of blocks. Among equally full blocks the first ones, row by row, are taken.
    """
    importance = split_blocks(mask[:, None], side).mean(dim=(2, 3))
    return importance.sort(dim=1, descending=True, stable=True).indices[:, :count]


def split_blocks(maps: Tensor, side: int) -> Tensor:
    """Cut (B, C, h, w) into blocks, row by row (Eq. 5): (B, blocks, side * side, C)."""
    maps = F.pad(maps, (0, -maps.shape[3] % side, 0, -maps.shape[2] % side))
    blocks = maps.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # (B, C, rows, m, columns, m)
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def _tokens(maps: Tensor) -> Tensor:
    """Map (B, C, h, w) to (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)
