"""Running text for needles: the user's essays, or generated prose in their place."""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import islice, pairwise
from pathlib import Path

GENERATED = "generated prose, not the essays"
SENTENCES = 8192
"""Of generated prose; longer haystacks repeat it, as they repeat the essays."""
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")


class Essays:
    """A text as a list of words, repeated when more are asked for."""

    def __init__(self, path: Path | None) -> None:
        """Read a text file, or `{"text": ...}` as RULER's download script writes it.

        Raises:
            ValueError: the file is missing or holds no text.
        """
        self._path = path
        self.name = GENERATED
        if path is not None:
            self._text = _read(path)
            mark = hashlib.sha256(self._text.encode()).hexdigest()[:12]
            self.name = f"{path.name}, sha256 {mark}"

    @cached_property
    def _words(self) -> list[str]:
        return (_generated() if self._path is None else self._text).split()

    def sentences(self, words: int) -> list[str]:
        """The first so many words, cut into sentences."""
        repeats = -(-words // len(self._words))
        text = " ".join((self._words * repeats)[:words])
        cuts = [0, *(found.end() for found in _END.finditer(text)), len(text)]
        return [text[a:b].rstrip() for a, b in pairwise(cuts) if a < b]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            text = json.loads(text)["text"]
    except OSError as error:
        raise ValueError(
            f"haystack must be a text file, got {str(path)!r}: {error.strerror}"
        ) from None
    except (ValueError, LookupError, TypeError):
        rule = 'haystack must be text in UTF-8, or JSON with a "text"'
        raise ValueError(f"{rule}, got {str(path)!r}") from None
    if not isinstance(text, str) or not text.split():
        raise ValueError(f"haystack must hold words, got an empty {str(path)!r}")
    return text


@cache
def _generated() -> str:
    return " ".join(islice(prose_sentences(random.Random("essays")), SENTENCES))


def prose_sentences(rng: random.Random) -> Iterator[str]:
    """Endless sentences of generated prose, as they are written in a text."""
    from ....models import prose

    for sentence in prose.sentences(rng):
        text = " ".join(sentence).replace(" ,", ",").replace(" .", ".")
        yield text[:1].upper() + text[1:]
