"""DCAMA's learned part: mask aggregation at several levels, their integration, the mask-feature mixer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fss_d2.modeling.layers import MaskAggregation, balanced_regions, conv_pair, conv_stack, resize

__all__ = ["DCAMAHead"]

Tensors = Mapping[str, Tensor]


class DCAMAHead(nn.Module):
    """From backbone features of query and supports to logits (DCAMA, Sec. 3.2).

    What depends on the supports alone is done in `encode` and `collect`: "key.<block>" projected tokens,
    "mask.<level>" the masks at a level's size, "skip.<block>" features for the mixer. Any map size works,
    and supports may differ in size from the query.
    """

    def __init__(
        self,
        attention: Mapping[str, Mapping[str, int]],
        skips: Mapping[str, int],
        *,
        extras: Mapping[str, int] | None = None,
        skip_support: bool = True,
        support_background: bool = True,
        region_pixels: int = 0,
        region_means: bool = False,
        widths: Sequence[int] = (16, 64, 128),
        mixer_widths: Sequence[int] = (128, 64, 16),
        **mask_aggregation: Any,
    ) -> None:
        """
        Args:
            attention: level -> {block: channels}; levels from fine to coarse, blocks shallow to deep.
            skips: block -> channels of the features joined to the masks, fine to coarse (Table S3).
            extras: name -> channels of further maps of the query, joined to the mixer's input as they are.
            skip_support: join the supports' features as well (Table S5 (a)).
            support_background: False zeroes the supports' background before attention (Table 3).
            region_pixels: bring object and background to this many pixels each (Table S5 (b)); 0 keeps all.
            region_means: aggregate each layer a second time over just two support tokens, the means of object
                and background (not in the paper; learns from less data).
            widths: of the three convolutions that take a level's masks to features.
            mixer_widths: of the three mixer blocks; the last one's second convolution gives the two logits.
            mask_aggregation: further arguments of `MaskAggregation`, such as "num_heads".

        Raises:
            ValueError: no attention level, or a wrong number of widths.
        """
        super().__init__()
        if not attention:
            raise ValueError("DCAMA has no attention level: name at least one in ATTENTION_LEVELS")
        if not widths or len(mixer_widths) != 3:
            raise ValueError(
                f"MODEL.DCAMA.WIDTHS {widths} is empty, or MIXER_WIDTHS {mixer_widths} not three"
            )
        self.blocks = {level: tuple(blocks) for level, blocks in attention.items()}
        self.skips = tuple(skips)
        self.extras = tuple(extras or ())
        self.skip_support = skip_support
        self.support_background = support_background
        self.region_pixels = region_pixels
        self.region_means = region_means

        self.attention = nn.ModuleDict()
        self.squeeze = nn.ModuleDict()
        self.merge = nn.ModuleDict()
        width = widths[-1]
        for depth, (level, blocks) in enumerate(reversed(attention.items())):  # coarse to fine
            self.attention[level] = MaskAggregation(tuple(blocks.values()), **mask_aggregation)
            kernels = [5 if i < min(depth, 2) else 3 for i in range(len(widths))]
            self.squeeze[level] = conv_stack(len(blocks) * (1 + region_means), widths, kernels)
            if depth:
                self.merge[level] = conv_stack(width, [width] * 3, [3] * 3)
        mixed = width + sum(skips.values()) * (2 if skip_support else 1) + sum((extras or {}).values())
        first, second, third = mixer_widths
        self.mixers = nn.ModuleList(
            [
                conv_pair(mixed, first, second),
                conv_pair(second, second, third),
                conv_pair(third, third, 2, last_relu=False),
            ]
        )

    def encode(self, features: Tensors, masks: Tensor) -> dict[str, Tensor]:
        """Do for every support what needs no query.

        Args:
            features: block -> (B*K, C, h, w).
            masks: (B, K, H, W) float, 1 object, 0 background.

        Returns:
            "key.<block>" (B, K, h*w, C), "mask.<level>" (B, K, h, w), "skip.<block>" (B, K, C, h, w).
        """
        shape = masks.shape[:2]
        encoded: dict[str, Tensor] = {}
        for level, blocks in self.blocks.items():
            mask = resize(masks.flatten(0, 1)[:, None], features[blocks[0]].shape[-2:])  # (B*K, 1, h, w)
            encoded[f"mask.{level}"] = mask[:, 0].unflatten(0, shape)
            for name in blocks:
                tokens = features[name] if self.support_background else features[name] * mask
                encoded[f"key.{name}"] = self.attention[level].keys(tokens).unflatten(0, shape)
        for name in self.skips if self.skip_support else ():
            encoded[f"skip.{name}"] = features[name].unflatten(0, shape)
        return encoded

    def collect(self, parts: Sequence[dict[str, Tensor]], *, joint: bool = True) -> dict[str, Tensor]:
        """Bring together what `encode` gave for parts of the supports; the parts are emptied.

        Args:
            parts: from `encode`, one after the other in the order of the supports.
            joint: collect the tokens of all supports, and take the largest of their skip features, for one
                pass (Sec. 3.3); otherwise the supports stay apart.

        Returns:
            Tensors (B, S, ...), S = 1 if joint, else K: "key.<block>" (B, S, N, C), "mask.<level>"
            (B, S, K/S, h, w), "skip.<block>" (B, S, C, h, w). With ``region_pixels`` = n, N is 2n and the
            masks are (B, S, 1, 1, 2n). With ``region_means``, also "mean.<block>" (B, S, 2, C).
        """
        collected = {}
        for name in list(parts[0]):
            x = torch.cat([part.pop(name) for part in parts], dim=1) if parts[1:] else parts[0].pop(name)
            if name.startswith("skip."):
                collected[name] = x.amax(dim=1, keepdim=True) if joint else x
            elif name.startswith("key."):
                collected[name] = x.flatten(1, 2)[:, None] if joint else x
            else:
                collected[name] = x[:, None] if joint else x[:, :, None]
        if self.region_pixels:
            self._balance(collected)
        if self.region_means:
            self._add_means(collected)
        return collected

    def _add_means(self, collected: dict[str, Tensor]) -> None:
        for level, blocks in self.blocks.items():
            values = collected[f"mask.{level}"].flatten(2)  # (B, S, N)
            for name in blocks:
                means = self.attention[level].region_means(collected[f"key.{name}"], values)
                collected[f"mean.{name}"] = means

    def _balance(self, collected: dict[str, Tensor]) -> None:
        """Keep ``region_pixels`` support pixels of the object and of the background."""
        for level, blocks in self.blocks.items():
            values = collected[f"mask.{level}"].flatten(2)  # (B, S, N)
            chosen = balanced_regions(values.flatten(0, 1), self.region_pixels).view(*values.shape[:2], -1)
            collected[f"mask.{level}"] = values.gather(2, chosen)[:, :, None, None]
            for name in blocks:
                keys = collected[f"key.{name}"]
                index = chosen[..., None].expand(-1, -1, -1, keys.shape[3])
                collected[f"key.{name}"] = keys.gather(2, index)

    def forward(
        self, features: Tensors, support: Tensors, size: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Segment queries.

        Args:
            features: block -> (B, C, h, w) of the queries; also the maps of ``extras``.
            support: one slice [:, s] of what `collect` returns.
            size: (H, W) of the query images.

        Returns:
            Logits (B, 2, H, W), and level -> (B, layers, h, w) the aggregated masks.
        """
        aggregated = self.aggregate(features, support)
        return self.mix(self.integrate(aggregated), features, support, size), aggregated

    def aggregate(self, features: Tensors, support: Tensors) -> dict[str, Tensor]:
        """Cross attention of every layer: level -> (B, layers, h, w) query masks, shallow to deep.

        With ``region_means`` every layer gives two masks, one after the other.
        """
        aggregated = {}
        for level, blocks in self.blocks.items():
            attention = self.attention[level]
            values = support[f"mask.{level}"].flatten(1)  # (B, Ns)
            masks = []
            for name in blocks:
                queries = attention.queries(features[name])
                masks.append(attention(queries, support[f"key.{name}"], values))
                if self.region_means:
                    object_first = values.new_tensor([1.0, 0.0]).expand(values.shape[0], 2)
                    masks.append(attention(queries, support[f"mean.{name}"], object_first))
            aggregated[level] = torch.stack(masks, dim=1).unflatten(2, features[blocks[0]].shape[-2:])
        return aggregated

    def integrate(self, aggregated: Tensors) -> Tensor:
        """From the coarse level down, add the levels up: (B, widths[-1], h, w) at the finest one's size."""
        mingled = None
        for level in reversed(self.blocks):
            masks = self.squeeze[level](aggregated[level])
            if mingled is None:
                mingled = masks
            else:
                mingled = self.merge[level](resize(mingled, masks.shape[-2:]) + masks)
        return mingled

    def mix(self, mingled: Tensor, features: Tensors, support: Tensors, size: Sequence[int]) -> Tensor:
        """Join features to the masks, coarse to fine, and mix them up to (B, 2, H, W) logits."""
        for name in reversed(self.skips):
            joined = [features[name]]
            if self.skip_support:
                joined.append(support[f"skip.{name}"])
            finer = max(mingled.shape[-2:], joined[0].shape[-2:])
            mingled = torch.cat([resize(x, finer) for x in (mingled, *joined)], dim=1)
        for name in self.extras:
            mingled = torch.cat([mingled, resize(features[name], mingled.shape[-2:])], dim=1)
        for mixer, stride in zip(self.mixers, (4, 2, 1), strict=True):
            mingled = mixer(resize(mingled, [-(-side // stride) for side in size]))
        return mingled

    def attention_map(
        self, features: Tensors, support: Tensors, point: tuple[float, float], size: Sequence[int]
    ) -> Tensor:
        """Where in the supports one query pixel looks: mean over levels, layers and heads (Fig. S5).

        Args:
            features, support: as in `forward`.
            point: (y, x) of the pixel as fractions of the query's height and width, in [0, 1).
            size: height and width of the maps wanted.

        Returns:
            (B, K/S, height, width).

        Raises:
            ValueError: only some support pixels were kept, so there is no map.
        """
        if self.region_pixels:
            raise ValueError("no attention map of a subset of the support pixels: set REGION_PIXELS to 0")
        maps = []
        for level, blocks in self.blocks.items():
            grid = support[f"mask.{level}"].shape[1:]  # (K/S, h, w)
            for name in blocks:
                h, w = features[name].shape[-2:]
                pixel = int(point[0] * h) * w + int(point[1] * w)
                query = self.attention[level].queries(features[name])[:, pixel : pixel + 1]
                weights = self.attention[level].weights(query, support[f"key.{name}"])  # (B, heads, 1, Ns)
                maps.append(resize(weights.mean(dim=1)[:, 0].unflatten(1, grid), size))
        return torch.stack(maps).mean(dim=0)
