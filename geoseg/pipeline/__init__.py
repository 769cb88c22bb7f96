"""Scene to files: the one place that knows every room."""

from geoseg.pipeline.files import segment_to_files
from geoseg.pipeline.many import segment_jobs, segment_many
from geoseg.run.result import Batch, Outcome, Progress, Run
from geoseg.run.scenes import Job

__all__ = [
    "Batch", "Job", "Outcome", "Progress", "Run",
    "segment_jobs", "segment_many", "segment_to_files",
]  # fmt: skip
