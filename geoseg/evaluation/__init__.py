"""Evaluation: labels against truth, published benchmarks, and tuning on a few labels."""

from geoseg.evaluation.compare import EvaluatedPair, Evaluation, evaluate

__all__ = ["EvaluatedPair", "Evaluation", "evaluate"]
