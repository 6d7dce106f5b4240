"""Options in a place where SGLang would drop them without a word.

SGLang ignores keys it does not know at the top level of a request, and everything in
`custom_params` that no logit processor asks for. A request that meant to be sparse would be served
with the server's defaults; instead it is refused, naming the right place.

Only names that can be nothing but ours are refused (`sparsekv`, `sparse`, `sparsekv_...`, and what
KV-Compress's server took there, such as `max_cache_tokens`), with one exception: a bare option
name such as `budget` directly in `custom_params`. Two readers know that dictionary, we and a custom
logit processor, so it is refused when the request names no `custom_logit_processor`: nobody else
could have read it.
"""

from collections.abc import Iterator, Mapping

from ..config import KV_COMPRESS_FIELDS, REQUEST_FIELDS, REQUEST_KEY
from ..errors import RequestOptionError

NATIVE_PLACE = f"sampling_params.custom_params.{REQUEST_KEY}"
OPENAI_PLACE = f"custom_params.{REQUEST_KEY}"


def check_native(body: Mapping[str, object]) -> None:
    """Check a body of `/generate`.

    Raises:
        RequestOptionError: an option stands in the wrong place.
    """
    _refuse_names(body, "", NATIVE_PLACE)
    for stray in ("custom_params", "extra_body"):
        _refuse_carrier(body.get(stray), stray, NATIVE_PLACE)
    for path, params in _numbered(body.get("sampling_params"), "sampling_params"):
        _refuse_names(params, path + ".", NATIVE_PLACE)
        _refuse_carrier(params.get("extra_body"), f"{path}.extra_body", NATIVE_PLACE)
        _refuse_inside_custom_params(params, f"{path}.custom_params", body, NATIVE_PLACE)


def check_vertex(body: Mapping[str, object]) -> None:
    """Check a body of `/vertex_generate`: `parameters` are what `/generate` takes.

    Raises:
        RequestOptionError: an option stands in the wrong place.
    """
    place = f"parameters.{NATIVE_PLACE}"
    _refuse_names(body, "", place)
    for path, instance in _numbered(body.get("instances"), "instances"):
        _refuse_names(instance, path + ".", place)
        _refuse_carrier(instance.get("sampling_params"), f"{path}.sampling_params", place)
    parameters = body.get("parameters")
    if isinstance(parameters, Mapping):
        check_native(parameters)


def check_openai(body: Mapping[str, object]) -> None:
    """Check a body of `/v1/completions` or `/v1/chat/completions`.

    Raises:
        RequestOptionError: an option stands in the wrong place.
    """
    _refuse_names(body, "", OPENAI_PLACE)
    for stray in ("sampling_params", "extra_body"):
        _refuse_carrier(body.get(stray), stray, OPENAI_PLACE)
    _refuse_inside_custom_params(body, "custom_params", body, OPENAI_PLACE)


def check_other(body: Mapping[str, object], route: str) -> None:
    """Check a body of a route that has no place for options.

    Raises:
        RequestOptionError: it carries some.
    """
    place = f"{OPENAI_PLACE} of /v1/chat/completions ({route} takes no options of ours)"
    _refuse_names(body, "", place)
    for stray in ("custom_params", "sampling_params", "extra_body"):
        _refuse_carrier(body.get(stray), stray, place)


def is_ours(name: object) -> bool:
    """Whether a key can mean nothing but our options."""
    if not isinstance(name, str):
        return False
    folded = name.lower().replace("-", "_")
    known = (REQUEST_KEY, "sparse", *KV_COMPRESS_FIELDS)
    return folded in known or folded.startswith(REQUEST_KEY + "_")


def _refuse_names(level: Mapping[str, object], prefix: str, place: str) -> None:
    for name in level:
        if is_ours(name):
            raise _misplaced(prefix + name, place)


def _refuse_carrier(value: object, path: str, place: str) -> None:
    """Refuse options inside an object that SGLang does not read here, two levels deep."""
    if not isinstance(value, Mapping):
        return
    _refuse_names(value, path + ".", place)
    inner = value.get("custom_params")
    if isinstance(inner, Mapping):
        _refuse_names(inner, f"{path}.custom_params.", place)


def _refuse_inside_custom_params(
    holder: Mapping[str, object], path: str, body: Mapping[str, object], place: str
) -> None:
    params = holder.get("custom_params")
    if not isinstance(params, Mapping):
        return
    other_reader = bool(body.get("custom_logit_processor"))
    for name in params:
        if name == REQUEST_KEY:
            continue
        if is_ours(name) or (name in REQUEST_FIELDS and not other_reader):
            raise _misplaced(f"{path}.{name}", place)


def _numbered(value: object, path: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """One object, or the objects of a list, each with its path."""
    if isinstance(value, Mapping):
        yield path, value
    elif isinstance(value, list):
        for item, entry in enumerate(value):
            if isinstance(entry, Mapping):
                yield f"{path}[{item}]", entry


def _misplaced(path: str, place: str) -> RequestOptionError:
    shown = path if len(path) <= 80 else path[:80] + "..."
    shown = shown if shown.isprintable() else ascii(shown)
    return RequestOptionError(f"{shown} would be ignored here; it belongs in {place}")
