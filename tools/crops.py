"""Training crops from a pool of drawn scenes, with labels as class shares of each patch."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tools.scenes import Cover
from tools.scenes.pool import ScenePool

CLASSES = len(Cover)


@dataclass(frozen=True)
class Batch:
    """Crops and what their patches hold."""

    pictures: Tensor
    """``(B, S, S, 3)`` uint8."""
    shares: Tensor
    """``(B, N, K)`` float32: share of each class in each patch; rows sum to one."""


class CropSampler:
    """Cuts crops of random scale, turn and brightness; some are aimed at rarer classes.

    Parameters
    ----------
    pool
        Where the scenes are.
    aimed
        Share of crops whose centre is a pixel of a class drawn uniformly.
    scales
        Range of the zoom: side of the crop in the scene over the side that is trained on.
    """

    def __init__(
        self,
        pool: ScenePool,
        seed: int,
        *,
        aimed: float = 0.4,
        scales: tuple[float, float] = (0.55, 1.8),
    ) -> None:
        self._pool = pool
        self._rng = np.random.default_rng(seed)
        self._aimed = aimed
        self._scales = np.log(scales)

    def batch(self, count: int, side: int, patch: int) -> Batch:
        """Cut ``count`` crops of ``side`` pixels, with class shares of their patches."""
        pictures, labels = self._cut(count, side)
        return Batch(torch.from_numpy(pictures), patch_shares(labels, patch))

    def with_labels(self, count: int, side: int) -> tuple[Tensor, Tensor]:
        """Pictures ``(B, S, S, 3)`` uint8 and pixel labels ``(B, S, S)`` int64."""
        pictures, labels = self._cut(count, side)
        return torch.from_numpy(pictures), torch.from_numpy(labels).long()

    def _cut(self, count: int, side: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        pictures = np.empty((count, side, side, 3), np.uint8)
        labels = np.empty((count, side, side), np.uint8)
        for k in range(count):
            pictures[k], labels[k] = self._crop(side)
        return self._jitter(pictures), labels

    def _crop(self, side: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        rng, pool = self._rng, self._pool
        size = pool.size
        reach = min(size, round(side * float(np.exp(rng.uniform(*self._scales)))))
        row, col = rng.integers(0, size - reach + 1, 2)
        scene = int(rng.integers(len(pool)))
        if rng.random() < self._aimed:
            cover = Cover(int(rng.integers(CLASSES)))
            having = pool.scenes_with(cover)
            if having.size:
                scene = int(rng.choice(having))
                row, col = self._around(pool.labels[scene], cover, reach, (row, col))
        box = (slice(row, row + reach), slice(col, col + reach))
        picture, label = pool.pictures[scene][box], pool.labels[scene][box]
        if reach != side:
            how = cv2.INTER_AREA if reach > side else cv2.INTER_LINEAR
            picture = cv2.resize(picture, (side, side), interpolation=how)
            label = cv2.resize(label, (side, side), interpolation=cv2.INTER_NEAREST)
        turns = int(rng.integers(4))
        picture, label = np.rot90(picture, turns), np.rot90(label, turns)
        if rng.random() < 0.5:
            picture, label = picture[:, ::-1], label[:, ::-1]
        return picture, label

    def _around(
        self, labels: npt.NDArray[np.uint8], cover: Cover, reach: int, otherwise: tuple[int, int]
    ) -> tuple[int, int]:
        """Corner of a crop that holds a random pixel of the class at a random place."""
        rows, cols = np.nonzero(labels[::4, ::4] == cover)
        if rows.size == 0:
            return otherwise
        at = int(self._rng.integers(rows.size))
        last = labels.shape[0] - reach
        offset = self._rng.integers(0, reach, 2)
        row = int(np.clip(rows[at] * 4 - offset[0], 0, last))
        return row, int(np.clip(cols[at] * 4 - offset[1], 0, last))

    def _jitter(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Gamma, gain and offset of each band; sometimes bands mixed, or grey.

        Real sensors and their stretches cast colours that no palette foresees, so part of the
        crops must be understood by shape and texture.
        """
        rng = self._rng
        ramp = np.arange(256, dtype=np.float32) / 255
        for picture in pictures:
            if rng.random() < 0.3:
                picture[:] = self._mixed(picture)
            if rng.random() < 0.25:
                continue
            cast = 0.18 if rng.random() < 0.4 else 0.06
            gamma = np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.05, 3))
            gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, cast, 3))
            offset = rng.normal(0, 0.02, 3) + rng.normal(0, 0.03)
            for band in range(3):
                curve = ramp ** gamma[band] * gain[band] + offset[band]
                table = (np.clip(curve, 0, 1) * 255).astype(np.uint8)
                picture[..., band] = cv2.LUT(np.ascontiguousarray(picture[..., band]), table)
        return pictures

    def _mixed(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Bands as sums of bands; all three alike in a quarter of the cases."""
        rng = self._rng
        if rng.random() < 0.25:
            mix = np.tile(rng.dirichlet([2, 2, 2]), (3, 1))
        else:
            mix = np.eye(3) + rng.normal(0, 0.15, (3, 3))
            mix /= np.abs(mix).sum(1, keepdims=True)
        return cv2.transform(picture, mix.astype(np.float32))


def patch_shares(labels: npt.NDArray[np.uint8], patch: int) -> Tensor:
    """Class shares of every patch, ``(B, N, K)``, patches row by row."""
    count, side = labels.shape[:2]
    grid = side // patch
    along = np.arange(side) // patch
    place = along[:, None] * grid + along[None]
    index = (np.arange(count)[:, None, None] * grid * grid + place) * CLASSES + labels
    votes = np.bincount(index.ravel(), minlength=count * grid * grid * CLASSES)
    shares = votes.reshape(count, grid * grid, CLASSES) / (patch * patch)
    return torch.from_numpy(shares.astype(np.float32))
