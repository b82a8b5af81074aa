"""From a few annotated pictures to labels of a folder, in the formats of other programs."""
