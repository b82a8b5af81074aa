"""Label a folder of images like a few annotated ones, in the formats of other programs."""
