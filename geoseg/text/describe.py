"""Descriptions of classes, mixed into the vectors of their words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from geoseg.errors import OptionError
from geoseg.methods import Share
from geoseg.text.queries import Embed, Queries


@dataclass(frozen=True)
class Describe:
    """Words' vectors become ``1 - share`` of themselves and ``share`` of their class's description.

    Aydın et al., "ITACLIP: Boosting Training-Free Semantic Segmentation", CVPRW 2025, where a
    language model writes the descriptions. Here they stand in the class file (``descriptions``);
    several are averaged, and a class without any stays as it is.

    Raises
    ------
    OptionError
        Where it is called, if no class has a description.
    """

    share: Share = 0.2
    """Of the description; 0 leaves the words."""
    unit: bool = True
    """Scale the mixture to unit length; ITACLIP does not."""

    def __call__(self, queries: Queries, embed: Embed) -> Queries:
        """Mix."""
        if not any(queries.descriptions):
            raise OptionError(
                'describe needs descriptions of classes; write descriptions = ["…"] into the '
                "class file"
            )
        if not self.share:
            return queries
        vectors = queries.vectors.copy()
        for number, texts in enumerate(queries.descriptions):
            if texts:
                mean = embed(texts).mean(0)
                if len(texts) > 1:
                    mean /= np.linalg.norm(mean)
                rows = queries.class_of == number
                mixed = (1 - self.share) * vectors[rows] + self.share * mean
                if self.unit:
                    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
                vectors[rows] = mixed
        return replace(queries, vectors=vectors.astype(np.float32))
