"""The formulas once more, in numpy float64 and loops, one KV head at a time."""

import math

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def head(tensor: torch.Tensor, h: int) -> Array:
    """One head of `[S, H, D]` as float64 `[S, D]`."""
    return tensor[:, h].double().numpy()


def cosine(a: Array, b: Array) -> float:
    """Cosine of two vectors; 0 where either is zero."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths else 0.0


def unit(vector: Array) -> Array:
    """The vector brought to length one."""
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def kmeans(points: Array, clusters: int, iterations: int, spherical: bool) -> tuple[Array, Array]:
    """Lloyd from strided points: distances `[n, C]` to the last centroids, and the centroids."""
    points = np.array([unit(p) for p in points]) if spherical else points
    n = len(points)
    centres = np.array([points[i * n // clusters] for i in range(clusters)])
    for step in range(iterations + 1):
        far = np.array(
            [[1 - c @ p if spherical else np.sum((p - c) ** 2) for c in centres] for p in points]
        )
        if step == iterations:
            break
        labels = far.argmin(1)
        worst = iter(sorted(range(n), key=lambda i: (-far[i, labels[i]], i)))
        moved = []
        for c in range(clusters):
            members = points[labels == c]
            if not len(members):
                moved.append(points[next(worst)])
            elif spherical:
                moved.append(unit(members.sum(0)))
            else:
                moved.append(members.mean(0))
        centres = np.array(moved)
    return far, centres


def quiet(points: Array) -> npt.NDArray[np.bool_]:
    """Points no longer than a 64th of the longest."""
    lengths = [math.sqrt(math.fsum(x * x for x in point)) for point in points]
    return np.array([length <= max(lengths) / 64 for length in lengths])


def place(far: Array, silent: npt.NDArray[np.bool_] | None, capacity: int | None) -> list[int]:
    """The nearest cluster, one of their own for silent points; too large ones go on as new ones."""
    own = far.shape[1]  # label of silent points, if any get a cluster
    labels = [int(row.argmin()) for row in far]
    if silent is not None:
        labels = [own if s else label for s, label in zip(silent, labels, strict=True)]
    free = own + (silent is not None)
    for cluster in range(own + 1):
        members = [point for point, label in enumerate(labels) if label == cluster]
        for nth, point in enumerate(members):
            if capacity is not None and nth and nth % capacity == 0:
                free += 1
            if capacity is not None and nth >= capacity:
                labels[point] = free - 1
    return labels
