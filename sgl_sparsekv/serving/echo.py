"""What was applied to a request and what it read, told in its response.

The scheduler knows; SGLang's `customized_info` carries the report to the front end once, with the
last tokens. On `/generate` it is `meta_info["sparsekv"]`; in OpenAI responses, and in the streamed
chunk that ends a choice, it is `metadata["sparsekv"]` (a list in choice order if there are several
choices in one response).
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import orjson

from .front_end import FrontEnd, front_end_of

KEY = "sparsekv"


def attach_reports(original: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `_GenerationStreamAccumulator.to_payload`: add reports of finished requests."""
    from ..backend.request_table import active_table

    table = active_table()
    # The Rust front end reads no customized_info.
    if table is not None and not batch.rust_server_mode:
        # One list per request, empty or with one report: a tokenizer worker that loads no plugins
        # extends lists with these.
        reports: list[list[dict[str, Any]]] = []
        for request in batch.output_reqs:
            report = table.report(request.rid) if request.finished() else None
            reports.append([report] if report is not None else [])
        if any(reports):
            batch.customized_info[KEY] = reports
    return original(batch, *args, **kwargs)


def take_report(
    original: Callable[..., Any],
    manager: Any,
    meta_info: dict[str, Any],
    state: Any,
    customized_info: dict[str, Any],
    index: int,
    finish_reason: object,
) -> None:
    """Around `TokenizerManager.update_request_meta_info`: a plain dict instead of a list.

    SGLang accumulates customized values per token and slices them when it streams; ours must stay
    out of that.
    """
    others = {key: values for key, values in customized_info.items() if key != KEY}
    if others:
        original(manager, meta_info, state, others, index, finish_reason)
    reports = customized_info.get(KEY)
    if not reports or not reports[index]:
        return
    meta_info[KEY] = reports[index][0]
    front_end = front_end_of(manager)
    if front_end is not None and getattr(state.obj, "stream", False):
        front_end.reports.put(meta_info["id"], meta_info[KEY])


def add_to_response(
    result: Any, serving: Any, request: object, outputs: list[dict[str, Any]], created: int
) -> None:
    """After `_build_chat_response` and `_build_completion_response`: fill `metadata`."""
    if front_end_of(serving.tokenizer_manager) is None:
        return
    reports = [output["meta_info"].get(KEY) for output in outputs]
    # Error responses have no metadata.
    if hasattr(result, "metadata") and any(reports):
        value = reports[0] if len(reports) == 1 else reports
        result.metadata = {**(result.metadata or {}), KEY: value}


def add_to_stream(original: Callable[..., Any], serving: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `_generate_chat_stream` and `_generate_completion_stream`."""
    chunks = original(serving, *args, **kwargs)
    front_end = front_end_of(serving.tokenizer_manager)
    return chunks if front_end is None else _with_reports(chunks, front_end)


async def _with_reports(
    chunks: AsyncGenerator[str, None], front_end: FrontEnd
) -> AsyncGenerator[str, None]:
    rid_of_choice: dict[int, str] = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            yield _with_report(chunk, rid_of_choice, front_end)


def _with_report(chunk: str, rid_of_choice: dict[int, str], front_end: FrontEnd) -> str:
    """A server-sent event; with the report if it ends a choice.

    Args:
        chunk: the event as SGLang wrote it.
        rid_of_choice: request id of each choice so far; chat ends all choices of a response under
            the id of one of them.
        front_end: keeps the reports.
    """
    ends = '"finish_reason":"' in chunk  # inside a string the quotes would be escaped
    if not chunk.startswith("data: {") or not (ends or '"index":' in chunk):
        return chunk
    # Tool calls have an index as well, so the choice is plain only while there is one.
    if not ends and '"index":0,' in chunk and [*rid_of_choice] == [0]:
        return chunk
    try:
        event = orjson.loads(chunk.removeprefix("data: "))
        choice = event["choices"][0]
        index, finished = choice["index"], choice["finish_reason"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return chunk  # an error event, or usage
    rid = rid_of_choice.setdefault(index, event["id"])
    report = front_end.reports.take(rid) if finished else None
    if report is None:
        return chunk
    event["metadata"] = {**(event.get("metadata") or {}), KEY: orjson.Fragment(report)}
    return f"data: {orjson.dumps(event).decode()}\n\n"
