"""Class-agnostic mask proposals: the parts of Mask2Former (Cheng et al., CVPR 2022); none reads a config."""
