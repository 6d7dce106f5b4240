"""The sets of LongBench v1 (arXiv 2308.14508, `pred.py` and `eval.py`): how each one is judged."""

from collections.abc import Mapping
from types import MappingProxyType

SYNTHETIC = "facts"
"""The package's own set of the same form; see `synthetic.py`."""
METRIC: Mapping[str, str] = MappingProxyType(
    {
        "narrativeqa": "qa_f1",
        "qasper": "qa_f1",
        "multifieldqa_en": "qa_f1",
        "multifieldqa_zh": "qa_f1_zh",
        "hotpotqa": "qa_f1",
        "2wikimqa": "qa_f1",
        "musique": "qa_f1",
        "dureader": "rouge_zh",
        "gov_report": "rouge",
        "qmsum": "rouge",
        "multi_news": "rouge",
        "vcsum": "rouge_zh",
        "trec": "classification",
        "triviaqa": "qa_f1",
        "samsum": "rouge",
        "lsht": "classification",
        "passage_count": "count",
        "passage_retrieval_en": "retrieval",
        "passage_retrieval_zh": "retrieval_zh",
        "lcc": "code_sim",
        "repobench-p": "code_sim",
        SYNTHETIC: "qa_f1",
    }
)
"""Of every set, in the order of `pred.py`."""
PUBLISHED = tuple(name for name in METRIC if name != SYNTHETIC)
WITH_E = frozenset(
    set(PUBLISHED)
    - {"narrativeqa", "multifieldqa_zh", "musique", "dureader", "qmsum", "vcsum", "lsht"}
    - {"passage_retrieval_zh"}
)
"""Sets that LongBench-E has, too."""
FIRST_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
"""Sets of solved examples: the model goes on with another one, so only its first line counts."""
PLAIN = FIRST_LINE | {"lcc", "repobench-p"}
"""Sets whose prompt is continued, not answered: they take no chat template."""
BUCKETS = ((4000, "0-4k"), (8000, "4-8k"), (None, "8k+"))
"""Of LongBench-E: lengths in words (characters in Chinese), and the name of those below."""
ALL = (*METRIC, *(f"{name}_e" for name in METRIC if name in WITH_E))


def base(name: str) -> str:
    """A set's name without the mark of LongBench-E."""
    return name.removesuffix("_e")


def bucket(length: int) -> str:
    """Where LongBench-E counts a question of that length."""
    return next(name for bound, name in BUCKETS if bound is None or length < bound)
