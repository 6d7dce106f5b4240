"""The formulas once more, in numpy float64 and loops, one KV head at a time."""

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


def place(far: Array, capacity: int) -> list[int]:
    """Points ask the nearest cluster with room, round by round."""
    labels = [-1] * len(far)
    room = [capacity] * far.shape[1]
    while -1 in labels:
        asks: dict[int, list[tuple[float, int]]] = {}
        for point, row in enumerate(far):
            if labels[point] < 0:
                wish = min((row[c], c) for c in range(len(room)) if room[c])[1]
                asks.setdefault(wish, []).append((row[wish], point))
        for cluster, points in asks.items():
            for _, point in sorted(points)[: room[cluster]]:
                labels[point] = cluster
            room[cluster] -= min(room[cluster], len(points))
    return labels


def softmax(logits: Array) -> Array:
    """Over one row."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
