"""Windows that overlap share the kernels of a learned upsampler: a CPU's speed, nothing else.

Without it a tile with ``simfeatup`` takes longer by a fifth or more (``bench_speed.py --only
sharing``). To do without it, delete this folder and its three lines in `geoseg.inference.runners`.
"""

from geoseg.inference.runners.shared.runner import can_share, run_shared, shared_lattices

__all__ = ["can_share", "run_shared", "shared_lattices"]
