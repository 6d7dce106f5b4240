"""What a reader puts in the place of a document's capital words, and the files they name."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from helpers.gguf_samples import tiny_model, write_gguf

from sgl_sparsekv.models.analytic import save_analytic
from sgl_sparsekv.models.documents import chain_document

SERVER = re.compile(r"(?:127\.0\.0\.1|localhost):30000")
"""Where SGLang listens unless it is told."""
TRACE = "tcp://127.0.0.1:5560"


@dataclass(frozen=True)
class Words:
    """Capital words and what they stand for.

    Attributes:
        meaning: word -> replacement.
        trace: endpoint in place of the documents' own.
    """

    meaning: dict[str, str]
    trace: str

    def resolve(self, text: str, server: str = "") -> str:
        """A command or sample with its words replaced.

        Args:
            text: as written.
            server: host and port of the server that its addresses mean.
        """
        for word, meant in self.meaning.items():
            text = re.sub(rf"\b{re.escape(word)}\b", lambda _, meant=meant: meant, text)
        return SERVER.sub(server, text.replace(TRACE, self.trace))


def write_words(folder: Path, trace: str) -> Words:
    """Write the files that the words name, small enough for a tiny model."""
    save_analytic(folder / "model")
    texts = [chain_document(4200, num_questions=1, num_hops=4, seed=seed).text for seed in (1, 2)]
    (folder / "texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number}.txt").write_text(text)
    prompts = [{"prompt": text[:8000], "continuation": text[8000:8400]} for text in texts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    (folder / "longbench").mkdir()
    asked = [_longbench(text[:6000], str(number)) for number, text in enumerate(texts)]
    (folder / "longbench" / "qasper.jsonl").write_text("".join(json.dumps(a) + "\n" for a in asked))
    sums = [{"question": f"{n} and {n} ?", "answer": f"#### {2 * n}"} for n in (1, 2)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sums))
    write_gguf(tiny_model("llama"), "llama", folder / "weights.gguf")
    meaning = {
        "MODEL": folder / "model",
        "WEIGHTS.gguf": folder / "weights.gguf",
        "PROMPTS.jsonl": folder / "prompts.jsonl",
        "PROBLEMS.jsonl": folder / "problems.jsonl",
        "TEXTS": folder / "texts",
        "LONGBENCH": folder / "longbench",
        "FILE": folder / "texts" / "0.txt",
        "DIR": "bench/results",  # of the copy that a command runs in
        "NAME": "random_pages",  # another package's method, `tests/helpers/random_pages`
    }
    return Words({word: str(meant) for word, meant in meaning.items()}, trace)


def _longbench(context: str, number: str) -> dict[str, object]:
    return {
        "input": "Where does the road go?",
        "context": context,
        "answers": ["Ada"],
        "length": len(context.split()),
        "dataset": "qasper",
        "language": "en",
        "all_classes": None,
        "_id": number,
    }
