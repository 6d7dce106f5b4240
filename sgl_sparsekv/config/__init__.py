"""Options: what a server is started with and what a request may change. Parsed and checked once.

Every default stands here and nowhere else; `docs/options.md` is checked against this folder.
"""

from .kv_compress import OURS as KV_COMPRESS_FIELDS
from .pages import DEFAULT_PAGE_SIZE, check_chunks, check_page_size
from .parse import REQUEST_KEY, parse_request_options, parse_server_options
from .request import REQUEST_FIELDS, RequestOptions
from .server import CHECK_MODES, FUSED_DEVICES, INDEX_FIELDS, SERVER_FIELDS, ServerOptions

__all__ = [
    "CHECK_MODES", "DEFAULT_PAGE_SIZE", "FUSED_DEVICES", "INDEX_FIELDS", "KV_COMPRESS_FIELDS",
    "REQUEST_FIELDS", "REQUEST_KEY", "SERVER_FIELDS", "RequestOptions", "ServerOptions",
    "check_chunks", "check_page_size", "parse_request_options", "parse_server_options",
]  # fmt: skip
