"""Method names and where they live; a method is imported when it is first used.

Another installed package brings methods of its own by entry points of the group
`sgl_sparsekv.methods`: a name, and the class as `module:Class`.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from ..errors import ConfigError
from .base import SelectionMethod

ENTRY_POINTS = "sgl_sparsekv.methods"
BUILT_IN = {
    "adakv": "adakv:AdaKV",
    "clusterkv": "clusterkv:ClusterKV",
    "full": "full:Full",
    "h2o": "h2o:H2O",
    "kvcompress": "kvcompress:KVCompress",
    "mean_std": "mean_std:MeanStd",
    "oracle": "oracle:Oracle",
    "pqcache": "pqcache:PQCache",
    "pyramidkv": "pyramidkv:PyramidKV",
    "quest": "quest:Quest",
    "quest_int8": "quest_int8:QuestInt8",
    "quest_two_level": "two_level:TwoLevel",
    "quest_two_level_exact": "two_level:TwoLevelExact",
    "residual_pq": "residual_pq:ResidualPQ",
    "shadowkv": "shadowkv:ShadowKV",
    "snapkv": "snapkv:SnapKV",
    "streaming": "streaming:Streaming",
}


def _brought() -> dict[str, EntryPoint]:
    """Methods of other packages."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    taken = sorted(set(found) & set(BUILT_IN))
    if taken:
        raise ConfigError(f"method {taken[0]} is built in, {found[taken[0]].value} must be renamed")
    return found


METHODS: dict[str, str | EntryPoint] = {**BUILT_IN, **_brought()}


def method_names() -> list[str]:
    """Known method names, sorted."""
    return sorted(METHODS)


def view_names() -> list[str]:
    """Built-in methods that keep views: they need no memory before a request asks for one."""
    return [name for name in sorted(BUILT_IN) if load_method(name).narrows]


@cache
def load_method(name: str) -> SelectionMethod:
    """The method of that name (one shared, stateless instance).

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
        ConfigError: another package's class is no `SelectionMethod`, or has another name.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(method_names())}, got {name!r}")
    place = METHODS[name]
    if isinstance(place, str):
        module, _, cls = place.partition(":")
        method: SelectionMethod = getattr(import_module(f".{module}", __package__), cls)()
        return method
    made = place.load()()
    if not isinstance(made, SelectionMethod) or made.name != name:
        raise ConfigError(f"{place.value} must be a SelectionMethod with name {name!r}")
    return made
