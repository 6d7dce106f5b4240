"""What every server of a sweep is asked, and whether it answered as SGLang's dense backend does."""

from typing import Any

BUDGET = 128
OURS = (
    *("--attention-backend", "sparsekv", "--sparsekv-budget", str(BUDGET)),
    *("--sparsekv-dense-layers", "0", "--sparsekv-check", "raise"),
    *("--sparsekv-check-interval", "1"),
)
DENSE = ("--attention-backend", "torch_native", "--device", "cpu")
COMMON = (
    *("--dtype", "float32"),  # which "auto" would make 16 bits of
    *("--max-total-tokens", "4096", "--max-running-requests", "8", "--random-seed", "0"),
    *("--skip-server-warmup", "--log-level", "warning", "--dtype", "float32"),
)
HEADERS = {"Authorization": "Bearer x"}
"""For the servers that want a key; others do not look."""
LENGTHS = (6, 90, 400)
TOKENS = 12
SPARSE_TOKENS = 24
DISTINCT = 3
"""Tokens that a model must say, over all prompts, for equal answers to mean something."""
SAYS_NOTHING = "this tiny model says the same whatever it reads"
UNCOMPARED = "no answer of torch_native to compare with"


def prompts(vocabulary: int) -> list[list[int]]:
    """Ids that repeat late; the longest is longer than the budget."""
    room = vocabulary - 2
    return [[2 + (i * i * 7 + i * length) % room for i in range(length)] for length in LENGTHS]


def requests(vocabulary: int) -> list[dict[str, Any]]:
    """All prompts read in full, with a budget above the context, and sparsely."""
    ids = prompts(vocabulary)
    return [
        body(ids, TOKENS, {"method": "full"}),
        body(ids, TOKENS, {"budget": 1024}),
        body(ids, SPARSE_TOKENS, {}),
    ]


def body(ids: list[list[int]], tokens: int, options: dict[str, Any]) -> dict[str, Any]:
    """One greedy request for all prompts."""
    sampling = {
        "temperature": 0,
        "max_new_tokens": tokens,
        "ignore_eos": True,
        "custom_params": {"sparsekv": options},
    }
    return {"input_ids": ids, "sampling_params": sampling}


def fault_of(answers: list[Any], expected: list[Any]) -> str | None:
    """What is wrong with a server's answers, or None; `expected` are those of a dense server."""
    if len(answers) < 3 or any(isinstance(answer, str) for answer in answers):
        return f"no answer: {answers[-1] if answers else 'none'}"
    for answer in answers:
        if not isinstance(answer, list) or len(answer) != len(LENGTHS):
            return f"answered {str(answer)[:200]}"
    if not comparable(expected):
        return UNCOMPARED
    if len({token for ids in ids_of(expected[0]) or () for token in ids}) < DISTINCT:
        return SAYS_NOTHING
    for name, answer, right in zip(("full", "a wide budget"), answers, expected, strict=False):
        if ids_of(answer) != ids_of(right):
            return f"other tokens than torch_native with {name}"
    return sparse_fault(answers[2])


def comparable(answers: list[Any]) -> bool:
    """Whether a dense server answered what ours would have to equal."""
    return len(answers) >= 2 and all(ids_of(answer) is not None for answer in answers[:2])


def sparse_fault(answers: list[dict[str, Any]]) -> str | None:
    """Whether the long prompt was read sparsely, and to its end."""
    for answer in answers:
        if len(answer["output_ids"]) != SPARSE_TOKENS:
            return f"{len(answer['output_ids'])} of {SPARSE_TOKENS} tokens"
    report = answers[-1]["meta_info"].get("sparsekv")
    if not isinstance(report, dict):
        return f"no report of what was read: {str(report)[:200]}"
    if not report["tokens_attended"] < report["tokens_in_context"]:
        return "nothing was left out"
    return None


def ids_of(answers: Any) -> list[list[int]] | None:
    """Output tokens, or None where there are none."""
    try:
        return [answer["output_ids"] for answer in answers]
    except (TypeError, KeyError):
        return None
