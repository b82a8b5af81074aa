"""From a few annotated pictures to labels of a folder, in the formats of other programs."""

from .job import Job, run_job
from .supports import Support, read_supports
from .writers import FORMATS

__all__ = ["FORMATS", "Job", "Support", "read_supports", "run_job"]
