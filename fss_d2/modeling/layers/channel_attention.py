"""Prototypical channel attention of the few-shot DANet, and the soft pooling in it."""

from torch import Tensor, nn

__all__ = ["PrototypicalChannelAttention", "soft_pool"]


def soft_pool(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over all positions, weighted in each channel by e to the value itself.

    SoftPool (Stergiou et al., ICCV 2021) with the whole map as its one region; Eq. 7 of Chen et al., 2022.

    Args:
        features: (N, C, h, w).
        weights: (N, h, w) at least 0, factors on the exponentials; where all of a map are 0, none is applied.

    Returns:
        (N, C), between mean and maximum of the positions that count.
    """
    features = features.flatten(2)  # (N, C, P)
    logits = features
    if weights is not None:
        weights = weights.flatten(1)[:, None]  # (N, 1, P)
        nowhere = (weights == 0).all(dim=2, keepdim=True)
        logits = features + weights.masked_fill(nowhere, 1).log()
    return (logits.softmax(dim=2) * features).sum(dim=2)


class PrototypicalChannelAttention(nn.Module):
    """A prototype in which strong responses count for more (Chen et al., 2022, Sec. 2.4, Eq. 6, 7).

    Two layers, fully connected over the channels at every position, with a ReLU between; then soft pooling
    over all positions. There is no sigmoid (none is written), and no bias (left open), so that positions
    masked out stay 0. As the paper has it, these take part in the pooling, with weight e^0 and value 0.
    """

    def __init__(self, channels: int, ratio: int = 16, *, masked: bool = False) -> None:
        """
        Args:
            channels: of features and prototype.
            ratio: how many times fewer channels there are between the layers.
            masked: pool over the object only (not in the paper).

        Raises:
            ValueError: a ratio that leaves no channel.
        """
        if not 1 <= ratio <= channels:
            raise ValueError(
                f"MODEL.DANET.PCA_RATIO {ratio} leaves no channel of {channels}: give 1 to {channels}"
            )
        super().__init__()
        width = channels // ratio
        self.squeeze = nn.Conv2d(channels, width, 1, bias=False)
        self.expand = nn.Conv2d(width, channels, 1, bias=False)
        self.masked = masked

    def respond(self, features: Tensor) -> Tensor:
        """F' of Eq. 6: (N, C, h, w) to the same; 0 where the features are 0."""
        return self.expand(self.squeeze(features).relu())

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """
        Args:
            features: (N, C, h, w) of supports, 0 outside the object.
            masks: (N, h, w) of the object, in [0, 1].

        Returns:
            (N, C) prototypes.
        """
        return soft_pool(self.respond(features), masks if self.masked else None)
