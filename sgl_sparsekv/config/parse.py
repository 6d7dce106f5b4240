"""Options from values that a user wrote."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import ConfigError, RequestOptionError
from ..selection import IndexOptions
from ..types import Reduction
from .checks import check_choice, listed, shown
from .kv_compress import translated
from .request import REQUEST_FIELDS, SERVER_ONLY, RequestOptions
from .server import FUSED_DEVICES, INDEX_FIELDS, SERVER_FIELDS, ServerOptions, unfused

REQUEST_KEY = "sparsekv"
"""Key of our options inside SGLang's `custom_params`."""


def parse_server_options(values: Mapping[str, Any]) -> ServerOptions:
    """Server options from flat values; what is absent keeps its default.

    Raises:
        ConfigError: an unknown name, or a wrong type or value.
    """
    unknown = sorted(set(values) - set(REQUEST_FIELDS) - set(SERVER_FIELDS))
    if unknown:
        known = listed((*REQUEST_FIELDS, *SERVER_FIELDS))
        raise ConfigError(f"unknown option {shown(unknown[0])}; known options are {known}")
    try:
        own = (*REQUEST_FIELDS, *SERVER_ONLY)
        request = RequestOptions(**{k: v for k, v in values.items() if k in own})
        index = IndexOptions(**{k: v for k, v in values.items() if k in INDEX_FIELDS})
        server = {k: v for k, v in values.items() if k not in (*own, *INDEX_FIELDS)}
        if "methods" in server:
            server["methods"] = _method_list(server["methods"])
        if "reduction" in server:
            check_choice("reduction", server["reduction"], tuple(Reduction))
            server["reduction"] = Reduction(server["reduction"])
        return ServerOptions(request=request, index=index, **server)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def parse_request_options(raw: object, server: ServerOptions) -> RequestOptions:
    """Options of one request, on top of the server's.

    Args:
        raw: the value of `custom_params["sparsekv"]`.
        server: supplies what the request does not name, and which methods are served.

    Raises:
        RequestOptionError: names the field, the rule and the value.
    """
    if not isinstance(raw, Mapping):
        raise RequestOptionError(f"sparsekv must be an object of options, got {shown(raw)}")
    try:
        raw = translated(raw)
    except ValueError as error:
        raise RequestOptionError(f"sparsekv.{error}") from None
    for name in raw:
        if name not in REQUEST_FIELDS:
            raise RequestOptionError(
                f"sparsekv.{shown(name, quote=False)} is not an option; "
                f"options are {listed(REQUEST_FIELDS)}"
            )
    method = raw.get("method", server.request.method)
    if not isinstance(method, str) or method not in server.methods:
        raise RequestOptionError(
            f"sparsekv.method must be one of {listed(server.methods)} on this server, "
            f"got {shown(method)}"
        )
    try:
        options = replace(server.request, **raw)
    except ValueError as error:
        raise RequestOptionError(f"sparsekv.{error}") from None
    refusal = unfused(server.device, options, server.covers)
    if refusal:
        raise RequestOptionError(f"sparsekv.{refusal}")
    if options.estimates and server.residuals is None:
        remedy = "keeps no clusters: start it with --sparsekv-estimate true"
        if server.device in FUSED_DEVICES:
            remedy = f"has no kernels for it on device {server.device}"
        raise RequestOptionError(f"sparsekv.estimate must be false on this server, which {remedy}")
    if options.share_generated and not server.request.share_generated:
        raise RequestOptionError(
            "sparsekv.share_generated must be false on a server that was started with it off, "
            "got true"
        )
    if server.attend != "triton" and options.dense_layers > server.request.dense_layers:
        raise RequestOptionError(
            f"sparsekv.dense_layers must be at most {server.request.dense_layers} on a server "
            f"with attend {server.attend}, got {options.dense_layers}"
        )
    return options


def _method_list(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"methods must be a list of method names, got {shown(value)}")
    return tuple(name.strip() for name in names)
