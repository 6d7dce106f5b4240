"""Prompts beyond what a model reads lose their middle (`pred.py` of LongBench)."""

from ...tokens import Tokens


def cut_middle(tokens: Tokens, document: str, question: str, most: int) -> tuple[str, str]:
    """Document and question of a prompt that keeps its first and last `most` / 2 tokens.

    Halves are decoded apart, without special tokens, and joined. The question stays one if its
    letters came through whole; else, as when it is longer than a half, all of the prompt is
    document.
    """
    whole = document + question
    ids = tokens.ids(whole)
    if len(ids) <= most:
        return document, question
    decode, half = tokens.tokenizer.decode, most // 2
    kept = (ids[:half], ids[-half:])
    head, tail = (str(decode(part, skip_special_tokens=True)) for part in kept)
    if question and tail.endswith(question):
        return head + tail.removesuffix(question), question
    return head + tail, ""
