"""The change of a colour at a place, looked up among the keyframe's own pixels (example-based, as in Hertzmann and others 2001).

The weight of the position relative to the colour is learnt from the keyframe: its pixels are predicted from one another, in blocks,
so that a pixel's neighbours are not used. If colours alone predict the edit, positions have no weight and nothing depends on the
flow; where two things of one colour were edited differently, positions must have weight.

Legend: N pixels, h w pixels at the working size, L weights of the place.
"""

from __future__ import annotations

import os

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

WEIGHTS = (0.0, 0.15, 0.6, 2.0)  # of a place across the longer side, against colours in [0, 1]
KNOWN, UNKNOWN = 0.18, 0.34  # share of a change that is not foretold: a region was recoloured; something was drawn
NEIGHBOURS = 8
MOST = (24000, 24000, 2000)  # pixels that are kept: changed ones, others of such colours, the rest
CELLS = 24         # of the table of colours, along a side
FOLD = 0.025       # side of the blocks that foretell one another, share of the longer side
PREFER = 1.6       # a higher weight must foretell this much better


class Lookup:
    """Examples from a keyframe.

    Args:
        picture, change: (h, w, 3) float32.
    """

    def __init__(self, picture: np.ndarray, change: np.ndarray):
        height, width = picture.shape[:2]
        self.side = max(height, width)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        places = np.stack([x, y], -1).reshape(-1, 2) / self.side
        colours, values = picture.reshape(-1, 3), change.reshape(-1, 3)
        changed = np.abs(values).max(1) > 0
        self.near = self._near(colours[changed])
        like = self.near[tuple(_cells(colours).T)]
        kinds = (changed, ~changed & like, ~like)
        kept = np.sort(np.concatenate([_some(np.flatnonzero(kind), most) for kind, most in zip(kinds, MOST, strict=True)]))
        self.colours, self.places, self.values = colours[kept], places[kept], values[kept]
        self.scale = float(np.sqrt(np.square(values[changed]).sum(1).mean())) if changed.any() else 0.0
        self.trees: dict[int, cKDTree] = {}
        self.errors = self._errors()
        self.best = self._choose()

    def _features(self, level: int, colours: np.ndarray, places: np.ndarray) -> np.ndarray:
        weight = WEIGHTS[level]
        return np.concatenate([colours, places * np.float32(weight)], 1) if weight else colours

    def _near(self, colours: np.ndarray) -> np.ndarray:
        """Cells of the colour table that hold a changed pixel, or lie beside one that does."""
        table = np.zeros((CELLS,) * 3, bool)
        table[tuple(_cells(colours).T)] = True
        for axis in range(3):
            grown = table.copy()
            for shift in (1, -1):
                moved = np.roll(table, shift, axis)
                moved[tuple(slice(None) if a != axis else (0 if shift > 0 else -1) for a in range(3))] = False
                grown |= moved
            table = grown
        return table

    def _errors(self) -> np.ndarray:
        """(L, CELLS, CELLS, CELLS): squared error with which colours foretell one another at each weight of the place."""
        block = np.floor(self.places / FOLD).astype(int).sum(1) % 2
        asked = np.flatnonzero(self.near[tuple(_cells(self.colours).T)])
        asked = _some(asked, 8000)
        count = np.zeros((CELLS,) * 3, np.float32)
        np.add.at(count, tuple(_cells(self.colours[asked]).T), 1)
        smooth = gaussian_filter(count, 1.0, mode="constant")
        def spread(values: np.ndarray) -> np.ndarray:
            """Mean in each cell and a little around it."""
            total = np.zeros((CELLS,) * 3, np.float32)
            np.add.at(total, tuple(_cells(self.colours[asked]).T), values)
            return (gaussian_filter(total, 1.0, mode="constant") + 0.02 * (values.mean() if len(values) else 0.0)) / (smooth + 0.02)

        self.energy = spread(np.square(self.values[asked]).sum(1))
        out = []
        for level in range(len(WEIGHTS)):
            features = self._features(level, self.colours, self.places)
            error = np.zeros(len(self.colours), np.float32)
            for side in (0, 1):
                known, wanted = np.flatnonzero(block != side), asked[block[asked] == side]
                if len(known) >= NEIGHBOURS and len(wanted):
                    found = _mean(cKDTree(features[known], leafsize=24), self.values[known], features[wanted])[0]
                    error[wanted] = np.square(found - self.values[wanted]).sum(1)
                else:
                    error[wanted] = self.scale**2
            out.append(spread(error[asked]))
        return np.stack(out)

    def _choose(self) -> np.ndarray:
        """The weight's number for each cell: the lowest that foretells nearly as well as the best."""
        floor = 1e-5
        best = np.zeros((CELLS,) * 3, int)
        error = self.errors[0] + floor
        for level in range(1, len(WEIGHTS)):
            better = (self.errors[level] + floor) * PREFER < error
            best[better] = level
            error = np.where(better, self.errors[level] + floor, error)
        return best

    def candidates(self, picture: np.ndarray) -> np.ndarray:
        """Pixels (h, w) whose colour is like one that changed."""
        return self.near[tuple(_cells(picture.reshape(-1, 3)).T)].reshape(picture.shape[:2])

    def find(self, colours: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The change of pixels, its expected squared error, and how far its exact place decides.

        Args:
            colours: (N, 3).  places: (N, 2) x and y in pixels of the keyframe.

        Returns:
            (N, 3), (N,), and (N,) in [0, 1]: 1 where a few pixels more or less matter, as in a drawing.
        """
        cells = tuple(_cells(colours).T)
        levels = self.best[cells]
        change, error = np.zeros((len(colours), 3), np.float32), np.zeros(len(colours), np.float32)
        for level in np.unique(levels):
            if level not in self.trees:
                self.trees[level] = cKDTree(self._features(level, self.colours, self.places), leafsize=24)
            mine = levels == level
            features = self._features(level, colours[mine], places[mine] / np.float32(self.side))
            found, spread, far = _mean(self.trees[level], self.values, features)
            change[mine] = found
            error[mine] = np.maximum(self.errors[level][tuple(c[mine] for c in cells)], spread) + np.square(far * self.scale / 0.15)
        missed = self.errors[(levels, *cells)] / self.energy[cells].clip(1e-9)
        return change, error, (levels > 0) * np.clip((missed - KNOWN) / (UNKNOWN - KNOWN), 0, 1)


def _cells(colours: np.ndarray) -> np.ndarray:
    return np.clip(colours * CELLS, 0, CELLS - 1).astype(int)


def _some(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, the same ones every time."""
    if len(numbers) <= most:
        return numbers
    return np.sort(np.random.default_rng(0).permutation(numbers)[:most])


def _mean(tree: cKDTree, values: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean of the nearest, its variance, and how far the nearest is."""
    distance, index = tree.query(features, min(NEIGHBOURS, tree.n), workers=min(2, os.cpu_count() or 1))
    distance, index = distance.reshape(len(features), -1).astype(np.float32), index.reshape(len(features), -1)
    weight = 1 / (np.square(distance) + 1e-6)
    weight /= weight.sum(1, keepdims=True)
    near = values[index]
    mean = (weight[..., None] * near).sum(1)
    spread = (weight * np.square(near - mean[:, None]).sum(-1)).sum(1)
    return mean, spread, distance[:, 0]
