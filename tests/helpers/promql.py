"""Which series and labels a PromQL expression names."""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<range>\[[^\]]*\])
    | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+|[smhdwy])?)
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^=<>(){},])
    )""",
    re.VERBOSE,
)
_RANGE = re.compile(r"\[(?:\d+[smhdwy]|\$__rate_interval|\$__range)(?::\w*)?\]")
_GROUPING = ("by", "without", "on", "ignoring", "group_left", "group_right")
_WORDS = (*_GROUPING, "and", "or", "unless", "bool", "offset")
_CLOSES = {")": "(", "}": "{"}


@dataclass(frozen=True)
class Expression:
    """What an expression names.

    Attributes:
        metrics: series, suffixes of histograms included.
        functions: functions and aggregations.
        labels: labels of matchers and of `by (...)`.
        text: the expression.
    """

    metrics: frozenset[str]
    functions: frozenset[str]
    labels: frozenset[str]
    text: str


def tokens_of(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each token.

    Raises:
        ValueError: something is not PromQL, or brackets do not match.
    """
    found, at, opened = [], 0, []
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"expression must be PromQL, got {text[at:]!r} in {text!r}")
        kind = str(match.lastgroup)
        token, at = match[kind], match.end()
        if kind == "range" and not _RANGE.fullmatch(token):
            raise ValueError(f"range must be a duration, got {token} in {text!r}")
        if token in _CLOSES.values():
            opened.append(token)
        elif token in _CLOSES and (not opened or opened.pop() != _CLOSES[token]):
            raise ValueError(f"brackets must match, got {token} in {text!r}")
        found.append((kind, token))
    if opened:
        raise ValueError(f"brackets must match, got an open {opened[-1]} in {text!r}")
    return found


def parse(text: str) -> Expression:
    """Names of an expression.

    Raises:
        ValueError: it is not PromQL.
    """
    tokens = [*tokens_of(text), ("end", "")]
    metrics, functions, labels = set(), set(), set()
    inside = ""
    for i, (kind, token) in enumerate(tokens[:-1]):
        following = tokens[i + 1][1]
        if token == "{" or (token == "(" and i and tokens[i - 1][1] in _GROUPING):
            inside = token
        elif inside and token in _CLOSES:
            inside = ""
        elif kind == "name" and inside:
            labels.add(token)
        elif kind == "name" and token not in _WORDS:
            (functions if following in ("(", *_GROUPING) else metrics).add(token)
    return Expression(frozenset(metrics), frozenset(functions), frozenset(labels), text)
