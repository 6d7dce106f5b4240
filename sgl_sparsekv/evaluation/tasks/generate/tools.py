"""A list of tools in the form that chat APIs give them, out of the library's own functions."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from ..real.library import Function, functions

HEAD = "These tools can be called:\n\n"
QUESTION = (
    'Call the tool "{name}". Give each of its parameters, in the order of its schema, a number: '
    'the first one 1, the next one 2, and so on. Answer with one JSON object that has "name" and '
    '"arguments".'
)
PARAMETERS = (3, 6)
"""Of a tool that is asked for: fewer say nothing, more take long."""


@dataclass(frozen=True)
class Toolbox:
    """A document of tools, and those in it that are asked for, by depth.

    Attributes:
        text: a line of JSON per tool.
        asked: tools, and the share of the document before each.
    """

    text: str
    asked: tuple[tuple[Function, float], ...]


def toolbox(ids: Callable[[str], list[int]], size: int, count: int, seed: int) -> Toolbox:
    """As many tools as fit; one asked for in each of `count` equal parts.

    Args:
        ids: text to token ids.
        size: tokens, at most.
        count: tools that are asked for.
        seed: the same gives the same.

    Raises:
        ValueError: there is too little room for them.
    """
    found = list(functions())
    random.Random(f"tools {seed}").shuffle(found)
    text, kept = HEAD, list[tuple[Function, int]]()
    length = len(ids(HEAD))
    for tool in found:
        line = f"{json.dumps(schema(tool), ensure_ascii=False)}\n"
        length += len(ids(line))
        if length > size:
            break
        kept.append((tool, len(text)))
        text += line
    least, most = PARAMETERS
    fitting = [(t, at / len(text)) for t, at in kept if least <= len(t.parameters) <= most]
    if len(fitting) < count:
        raise ValueError(f"length must leave room for {count} tools to ask for, got {size} tokens")
    picked = [fitting[(2 * nth + 1) * len(fitting) // (2 * count)] for nth in range(count)]
    return Toolbox(f"{text}\n", tuple(picked))


def schema(tool: Function) -> dict[str, object]:
    """Of a tool, as chat APIs have it; JSON."""
    properties = {name: {"type": "integer"} for name in tool.parameters}
    parameters = {"type": "object", "properties": properties, "required": [*tool.parameters]}
    return {"name": tool.name, "description": tool.purpose, "parameters": parameters}


def call(tool: Function) -> tuple[str, str]:
    """The beginning of the right answer, up to its first parameter's name, and the rest of it."""
    arguments = {name: nth for nth, name in enumerate(tool.parameters, 1)}
    start = f'{{"name": {json.dumps(tool.name)}, "arguments": {{"'
    return start, json.dumps({"name": tool.name, "arguments": arguments}).removeprefix(start)
