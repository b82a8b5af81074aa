"""From a few annotated pictures to masks: predictor, annotations, supports on disk, export."""
