"""Method names and where they live; a method is imported when it is first used."""

from functools import cache
from importlib import import_module

from .base import SelectionMethod

METHODS = {
    "clusterkv": "clusterkv:ClusterKV",
    "full": "full:Full",
    "mean_std": "mean_std:MeanStd",
    "oracle": "oracle:Oracle",
    "pqcache": "pqcache:PQCache",
    "quest": "quest:Quest",
    "quest_two_level": "two_level:TwoLevel",
    "quest_two_level_exact": "two_level:TwoLevelExact",
    "shadowkv": "shadowkv:ShadowKV",
    "streaming": "streaming:Streaming",
}


def method_names() -> list[str]:
    """Known method names, sorted."""
    return sorted(METHODS)


@cache
def load_method(name: str) -> SelectionMethod:
    """The method of that name (one shared, stateless instance).

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(method_names())}, got {name!r}")
    module, _, cls = METHODS[name].partition(":")
    method: SelectionMethod = getattr(import_module(f".{module}", __package__), cls)()
    return method
