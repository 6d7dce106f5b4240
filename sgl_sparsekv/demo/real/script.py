"""What is read and asked: the language reference that every Python carries for `help()`."""

from dataclasses import dataclass

from ...evaluation.tokens import Tokens

CONTEXT = 7000
"""Tokens of the text, at most: whole paragraphs of it."""
TOPICS = (
    *("try", "raise", "with", "import", "function", "class", "yield", "lambda", "exceptions"),
    *("naming", "for", "while", "break", "continue", "assert", "del", "global", "nonlocal"),
)
"""Chapters of `pydoc_data.topics`, in this order."""
SOURCE = "Python's own language reference, as `help()` has it"
QUESTIONS = (
    "What does the import statement do?",
    "What is a context manager?",
    "Write a short Python example that raises an exception from another exception.",
)
ANSWER_TOKENS, CONTINUATION_TOKENS = 48, 128


@dataclass(frozen=True)
class Passage:
    """One prompt; all of them begin with the same text.

    Attributes:
        title: the question, or what takes its place.
        prompt: what is read.
        ids: its tokens.
        tokens: how many to say.
        goes_on: what follows the text in its source; "" for a question.
    """

    title: str
    prompt: str
    ids: list[int]
    tokens: int
    goes_on: str = ""


@dataclass(frozen=True)
class Script:
    """A text, and what is asked about it.

    Attributes:
        source: what the text is.
        shared: tokens that every prompt begins with: the chat's opening and the text.
        passages: the continuation, then the questions.
    """

    source: str
    shared: list[int]
    passages: tuple[Passage, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return max(len(passage.ids) + passage.tokens for passage in self.passages)


def write_script(tokens: Tokens, context: int = CONTEXT) -> Script:
    """The text in a user's turn, going on by itself or followed by a question.

    Args:
        tokens: tokenizer of the model, with a chat template.
        context: tokens of the text, at most.

    Raises:
        ValueError: the model has no chat template.
    """
    before, after = tokens.chat()
    text, rest = _cut(tokens, context)
    head = f"{before}{text}\n\n"

    def passage(title: str, prompt: str, count: int, goes_on: str = "") -> Passage:
        return Passage(title, prompt, tokens.ids(prompt), count, goes_on)

    questions = [passage(q, f"{head}{q}{after}", ANSWER_TOKENS) for q in QUESTIONS]
    continuation = passage("The text goes on", head, CONTINUATION_TOKENS, rest)
    return Script(SOURCE, tokens.ids(before + text), (continuation, *questions))


def _cut(tokens: Tokens, context: int) -> tuple[str, str]:
    """Whole paragraphs of at most `context` tokens, and what follows them."""
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name].strip() for name in TOPICS).split("\n\n")
    kept, length = 0, 0
    for paragraph in paragraphs:
        length += len(tokens.ids(f"{paragraph}\n\n"))
        if length > context:
            break
        kept += 1
    return "\n\n".join(paragraphs[:kept]), "\n\n".join(paragraphs[kept:])
