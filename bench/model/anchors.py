"""Dense paged decode as others measured it, for what bytes alone do not say.

FlashAttention 3, page 16, 32 query and 8 KV heads of 128, bfloat16, microseconds per layer, from
vllm-project/vllm #43232. The thread's excerpt does not name the GPU; its 4.24 TB/s at batch 8 and
32k needs one of H200's class. Below 4k tokens at batch 1 launches and latency outweigh the bytes.
"""

from itertools import pairwise

FA3 = {
    1: {1024: 11.0, 4096: 14.5, 16384: 27.2, 32768: 43.5},
    8: {1024: 17.5, 4096: 41.6, 16384: 132.7, 32768: 253.5},
}
"""batch -> context -> microseconds per layer."""


def fa3_us(context: int, batch: int) -> float:
    """Microseconds per layer, between two measured contexts along a straight line.

    Args:
        context: tokens per request.
        batch: requests.

    Raises:
        ValueError: outside of what was measured.
    """
    if batch not in FA3:
        raise ValueError(f"batch must be one of {', '.join(map(str, FA3))} for FA3, got {batch}")
    times = FA3[batch]
    for (low, fast), (high, slow) in pairwise(times.items()):
        if low <= context <= high:
            return fast + (slow - fast) * (context - low) / (high - low)
    raise ValueError(f"tokens must be between {min(times)} and {max(times)} for FA3, got {context}")
