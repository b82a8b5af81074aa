"""Aligning a support's object with the query point by point and block by block (HPAM of JC2A)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ATTENTIONS", "PointBlockAttention", "split_blocks", "top_blocks"]

ATTENTIONS = ("linear", "normalized_linear", "softmax", "cosine")
MERGES = ("add", "multiply", "concat")


class PointBlockAttention(nn.Module):
    """Hybrid prototype alignment of JC2A (Huang et al., 2022, Sec. 3.3), for all levels of a pyramid.

    Point to point (P2P, Eq. 1-3): every query position attends to every support position. Point to block
    (P2B, Eq. 4-9): the support's square blocks that hold most of the object are kept, and attended to once
    for each offset inside a block; the responses are averaged. Both use the same projections, on all levels.

    The attention is linear, ReLU(Q) (softmax(K)^T V) with the softmax over the support positions, channel by
    channel: the bracket is a (C, C) matrix that needs no query. As it is linear in that bracket, the mean
    over P2B's offsets is taken there, once. The projections have no bias, so a support position outside
    the object has value 0 and answers nothing in P2P (in P2B it still has its position embedding).

    Table 4's other kinds: "normalized_linear" has BatchNorm(Q) for ReLU(Q); "softmax" is
    softmax(Q K^T / sqrt(C)) V; "cosine" is the mean over the support positions of cos(query, support) V, of
    the features themselves, so that it has no W_Q and W_K.
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
            sides: b of each level's maps, (B, C, b, b).
            p2p, p2b: which of the two there are (Table 3), at least one.
            block_sides: m of each level, cells; maps are zero-padded right and below to whole blocks.
            kept_blocks: k of each level, at most all.
            attention: one of `ATTENTIONS` (Table 4).
            position_embedding: add learned maps (b, b), alike for all channels, before P2B (Eq. 4).
            merge: of both responses, "add" (Eq. 10), "multiply" or "concat" (Table 6).

        Raises:
            ValueError: an unknown kind, no attention at all, or numbers that are not positive, one a level.
        """
        super().__init__()
        if attention not in ATTENTIONS or merge not in MERGES:
            raise ValueError(
                f"unknown MODEL.JC2A.ATTENTION {attention!r} or ATTENTION_MERGE {merge!r}: choose from "
                f"{', '.join(ATTENTIONS)}; {', '.join(MERGES)}"
            )
        if not (p2p or p2b):
            raise ValueError("neither P2P nor P2B: set one of them True, or leave the attention out")
        if not len(sides) == len(block_sides) == len(kept_blocks) or min(*block_sides, *kept_blocks) < 1:
            raise ValueError(
                f"MODEL.JC2A.BINS {tuple(sides)}, BLOCK_SIDES {tuple(block_sides)} and TOP_BLOCKS "
                f"{tuple(kept_blocks)} must have one positive number a level each"
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
        """Do for a support what needs no query.

        Args:
            level: of the pyramid.
            features: (B, C, b, b).
            mask: (B, b, b) in [0, 1].

        Returns:
            "p2p" and "p2b", as far as they are on: (B, C, C), or (B, 2, groups, positions, C) keys and
            values of "softmax".
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
        """Project query features (B, C, b, b), once for all supports: "p2p", "p2b" (B, b * b, C)."""
        projected = {}
        if self.p2p:
            projected["p2p"] = self._activate(self.query(_tokens(features)))
        if self.p2b:
            if len(self.query_position):
                features = features + self.query_position[level]
            projected["p2b"] = self._activate(self.query(_tokens(features)))
        return projected

    def forward(self, queries: Mapping[str, Tensor], support: Mapping[str, Tensor]) -> Tensor:
        """What the query positions are answered: (B, out_channels, b, b).

        Args:
            queries: from `queries`.
            support: from `encode`, of the same level.
        """
        answers = [self._answer(queries[name], support[name]) for name in queries]
        if len(answers) == 1 or self.merge == "concat":
            merged = torch.cat(answers, dim=2)
        else:
            merged = answers[0] + answers[1] if self.merge == "add" else answers[0] * answers[1]
        side = round(merged.shape[1] ** 0.5)
        return merged.transpose(1, 2).unflatten(2, (side, side))

    def _summarise(self, tokens: Tensor) -> Tensor:
        """Support tokens (B, groups, positions, C); the answers of the groups get averaged."""
        keys, values = self.key(tokens), self.value(tokens)
        if self.attention == "softmax":
            return torch.stack([keys, values], dim=1)
        if self.attention == "cosine":
            weights, count = F.normalize(keys, dim=3), tokens.shape[1] * tokens.shape[2]
        else:
            weights, count = keys.softmax(dim=2), tokens.shape[1]
        return torch.einsum("bgnc,bgnd->bcd", weights, values) / count

    def _activate(self, queries: Tensor) -> Tensor:
        """Queries (B, N, C) as the kind of attention wants them."""
        if self.norm is not None:
            return self.norm(queries.flatten(0, 1)).view_as(queries)
        if self.attention == "cosine":
            return F.normalize(queries, dim=2)
        return queries.relu() if self.attention == "linear" else queries

    def _answer(self, queries: Tensor, support: Tensor) -> Tensor:
        if self.attention != "softmax":
            return queries @ support
        keys, values = support.unbind(dim=1)  # (B, groups, positions, C)
        queries = queries[:, None].expand(-1, keys.shape[1], -1, -1)
        return F.scaled_dot_product_attention(queries, keys, values).mean(dim=1)


def top_blocks(mask: Tensor, side: int, count: int) -> Tensor:
    """Indices of the blocks that hold most of the object (Eq. 6), (B, min(count, blocks)).

    Args:
        mask: (B, h, w); cells missing to whole blocks count as 0.
        side: m, of a block.
        count: k. Of equally full blocks the first ones, row by row, are taken.
    """
    importance = split_blocks(mask[:, None], side).mean(dim=(2, 3))
    return importance.sort(dim=1, descending=True, stable=True).indices[:, :count]


def split_blocks(maps: Tensor, side: int) -> Tensor:
    """Cut (B, C, h, w) into blocks, row by row (Eq. 5): (B, blocks, side * side, C)."""
    maps = F.pad(maps, (0, -maps.shape[3] % side, 0, -maps.shape[2] % side))
    blocks = maps.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # (B, C, rows, m, columns, m)
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def _tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)
