"""Figures worked out by hand before the model was written: H200, Llama-3.1-8B, bfloat16.

As printed, so that their last digit says how exact they are.
"""

K = 1024
DENSE = {
    # (context, batch): (attention of a step, whole step), microseconds
    (32 * K, 1): ("999", "4489"),
    (32 * K, 8): ("7991", "11481"),
    (32 * K, 32): ("31963", "35453"),
    (128 * K, 1): ("3995", "7486"),
    (128 * K, 8): ("31963", "35453"),
    (128 * K, 32): ("127850", "131341"),
}
DENSE_LAYER = {
    # (context, batch): microseconds per layer
    **dict(zip([(8 * K, b) for b in (1, 8, 32)], ("7.8", "62", "250"), strict=True)),
    **dict(zip([(16 * K, b) for b in (1, 8, 32)], ("15.6", "125", "499"), strict=True)),
    **dict(zip([(32 * K, b) for b in (1, 8, 32)], ("31.2", "250", "999"), strict=True)),
    **dict(zip([(64 * K, b) for b in (1, 8, 32)], ("62", "499", "1998"), strict=True)),
    **dict(zip([(128 * K, b) for b in (1, 8, 32)], ("125", "999", "3995"), strict=True)),
}
BUDGETS = (1024, 2048, 4096)
SPARSE = {
    # (context, batch, page): per budget (attention of a step, gain of attention, of the step)
    (32 * K, 1, 16): "94 10.7 1.25 | 125 8.0 1.24 | 187 5.3 1.22",
    (32 * K, 1, 32): "62 16 1.26 | 94 10.7 1.25 | 156 6.4 1.23",
    (32 * K, 1, 64): "47 21.3 1.27 | 78 12.8 1.26 | 140 7.1 1.24",
    (32 * K, 8, 16): "749 10.7 2.71 | 999 8.0 2.56 | 1498 5.3 2.30",
    (32 * K, 8, 32): "499 16 2.88 | 749 10.7 2.71 | 1249 6.4 2.42",
    (32 * K, 8, 64): "375 21.3 2.97 | 624 12.8 2.79 | 1124 7.1 2.49",
    (32 * K, 32, 16): "2996 10.7 5.47 | 3995 8.0 4.74 | 5993 5.3 3.74",
    (32 * K, 32, 32): "1998 16 6.46 | 2996 10.7 5.47 | 4994 6.4 4.18",
    (32 * K, 32, 64): "1498 21.3 7.11 | 2497 12.8 5.92 | 4495 7.1 4.44",
    (128 * K, 1, 16): "281 14.2 1.98 | 312 12.8 1.97 | 375 10.7 1.94",
    (128 * K, 1, 32): "156 25.6 2.05 | 187 21.3 2.04 | 250 16 2.00",
    (128 * K, 1, 64): "94 42.7 2.09 | 125 32 2.07 | 187 21.3 2.04",
    (128 * K, 8, 16): "2247 14.2 6.18 | 2497 12.8 5.92 | 2996 10.7 5.47",
    (128 * K, 8, 32): "1249 25.6 7.48 | 1498 21.3 7.11 | 1998 16 6.46",
    (128 * K, 8, 64): "749 42.7 8.36 | 999 32 7.90 | 1498 21.3 7.11",
    (128 * K, 32, 16): "8989 14.2 10.5 | 9988 12.8 9.74 | 11986 10.7 8.49",
    (128 * K, 32, 32): "4994 25.6 15.5 | 5993 21.3 13.9 | 7991 16 11.4",
    (128 * K, 32, 64): "2996 42.7 20.3 | 3995 32 17.6 | 5993 21.3 13.9",
}
METADATA_STEP = {
    # (method, page): microseconds of a step at 32k and 128k, batch 1
    ("quest", 16): ("62", "250"),
    ("quest", 32): ("31", "125"),
    ("quest", 64): ("16", "62"),
    ("mean_std", 16): ("62", "250"),
    ("pq", 64): ("3.9", "15.6"),
    ("mean", 64): ("7.8", "31.2"),
    ("landmark8", 64): ("62", "250"),
    ("centroids", 64): ("6.2", "25"),
    ("quest_fp32", 64): ("31", "125"),
    ("quest_fp8", 16): ("31", "125"),
}
SELECTED_STEP = {1024: "31", 2048: "62", 4096: "125"}
SCORE_LAYER = {(32 * K, 16): "1.95", (32 * K, 64): "0.49", (128 * K, 64): "1.95"}
"""(context, page): microseconds per layer, batch 1."""
SELECTION_US = (0, 5, 10, 15, 25)
WITH_FA3 = {
    # (context, batch, budget): per selection cost (gain of attention, of the step)
    (32 * K, 1, 1024): "3.95 1.27 | 2.72 1.22 | 2.07 1.17 | 1.67 1.13 | 1.21 1.05",
    (32 * K, 1, 4096): "3.00 1.23 | 2.23 1.19 | 1.78 1.14 | 1.47 1.10 | 1.10 1.03",
    (16 * K, 1, 1024): "2.47 1.13 | 1.70 1.09 | 1.30 1.05 | 1.05 1.01 | 0.76 0.94",
    (16 * K, 1, 4096): "1.88 1.10 | 1.39 1.06 | 1.11 1.02 | 0.92 0.98 | 0.69 0.92",
    (16 * K, 8, 4096): "3.19 1.60 | 2.85 1.55 | 2.57 1.50 | 2.34 1.46 | 1.99 1.38",
    (32 * K, 8, 1024): "14.5 2.86 | 11.3 2.76 | 9.2 2.65 | 7.8 2.56 | 6.0 2.39",
    (32 * K, 8, 4096): "6.09 2.41 | 5.44 2.33 | 4.91 2.26 | 4.48 2.19 | 3.81 2.06",
}
PAYS_FROM = {
    # batch: thousands of tokens from which on it pays; choosing at 10 to 15 microseconds
    1: ("17", None),
    8: ("4", "5"),
    32: ("2.5", "3"),
}


def cells(row: str) -> list[list[str]]:
    """Figures of one row, cell by cell."""
    return [cell.split() for cell in row.split("|")]


def agrees(found: float, printed: str) -> None:
    """Within half a percent or half a unit of the last printed digit, whichever is more."""
    _, _, decimals = printed.partition(".")
    tolerance = max(0.005 * float(printed), 0.5 * 10 ** -len(decimals))
    assert abs(found - float(printed)) <= tolerance, f"{found} is not {printed}"
