"""LongBench's metrics, as the harness ships them, and what `eval.py` does around them."""

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from .prompts import NEEDED, harness


def best(metric: str, said: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """The best value of an answer over all that are right, 0 to 1.

    Raises:
        ValueError: the metrics are not installed.
    """
    if metric == "code_sim":
        return max(_code_sim(said, reference) for reference in references)
    score = getattr(library(), f"{metric}_score")
    return max(float(score(said, reference, all_classes=list(classes))) for reference in references)


def first_line(said: str) -> str:
    """What `eval.py` judges of an answer that goes on with another example."""
    return said.lstrip("\n").split("\n")[0]


def _code_sim(said: str, reference: str) -> float:
    """Likeness to the first line that is code.

    The harness passes over blank lines, LongBench does not; so the line is chosen here.
    """
    lines = said.lstrip("\n").split("\n")
    code = (line for line in lines if not any(mark in line for mark in ("`", "#", "//")))
    return float(library().fuzz.ratio(next(code, ""), reference)) / 100


@cache
def library() -> Any:
    """The harness's file of metrics, loaded by itself: the harness as a whole takes seconds.

    Raises:
        ValueError: it or something it needs is not installed.
    """
    spec = spec_from_file_location("sgl_sparsekv_longbench_metrics", harness() / "metrics.py")
    if spec is None or spec.loader is None:
        raise ValueError(NEEDED)
    module: Any = module_from_spec(spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
    except (OSError, ImportError):
        raise ValueError(NEEDED) from None
    module.jieba.setLogLevel(logging.WARNING)
    return module
