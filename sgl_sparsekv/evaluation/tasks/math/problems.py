"""Problems from `.jsonl` in their published form, and the numbers in what is said about them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
MARK = "####"
"""Before the number of a worked answer, in GSM8K."""
ASIDE = re.compile(r"<<[^>]*>>")
"""What GSM8K's worked answers hold for a calculator."""
FORM = "`question` and `answer` (GSM8K), or `problem` and `answer` (AIME)"


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        text: what is asked.
        worked: how it is solved, without its number; "" where the file does not say.
        number: what is right.
    """

    text: str
    worked: str
    number: Fraction


def last_number(text: str) -> Fraction | None:
    """The last number in a text, or the first one behind the last mark; None without one."""
    _, mark, behind = text.rpartition(MARK)
    found: list[str] = NUMBER.findall(behind)
    if mark and found:
        return _value(found[0])
    found = NUMBER.findall(text)
    return _value(found[-1]) if found else None


def written(number: Fraction) -> str:
    """As digits: `18`, `0.5`."""
    return str(number.numerator) if number.denominator == 1 else str(float(number))


def read_problems(path: Path) -> list[Problem]:
    """All problems of a file, in order; upper or lower case of its fields is no matter.

    Raises:
        ValueError: there is no such file, or a line has another form.
    """
    if not path.is_file():
        raise ValueError(f"data must be a file, got {str(path)!r}")
    found = list(_lines(path))
    if not found:
        raise ValueError(f"data must hold at least one problem, {path} is empty")
    return found


def _lines(path: Path) -> Iterator[Problem]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _problem(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{path} must have {FORM} with a number in line {number}") from None


def _problem(line: dict[str, Any]) -> Problem:
    fields = {name.lower(): value for name, value in line.items()}
    text = fields["question"] if "question" in fields else fields["problem"]
    answer = str(fields["answer"])
    number = last_number(answer)
    if number is None or not isinstance(text, str):
        raise ValueError
    worked = answer.rpartition(MARK)[0] or fields.get("solution") or ""
    return Problem(text.strip(), ASIDE.sub("", str(worked)).strip(), number)


def _value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
