"""Label a folder of images like a few annotated ones, in the formats of other programs."""

REVIEW_BELOW = 0.65  # pictures of less expected IoU are listed for a review
