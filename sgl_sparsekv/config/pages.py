"""Sizes that SGLang's flags must agree with."""

from ..errors import ConfigError
from ..geometry import PAGE_SIZES, UNIT_SIZE, ends_a_page
from .checks import listed

DEFAULT_PAGE_SIZE = 64
"""Page size of a server whose user names none."""


def check_page_size(page_size: int, unit_size: int = UNIT_SIZE, named: bool = True) -> None:
    """Refuse page sizes the package does not serve, or that the unit does not divide.

    Args:
        page_size: of the server.
        unit_size: of its metadata.
        named: the user chose it, and not SGLang.

    Raises:
        ConfigError: with the remedy.
    """
    if page_size not in PAGE_SIZES:
        rule = f"--page-size must be one of {listed(PAGE_SIZES)} for the sparsekv backend, got"
        if named:
            raise ConfigError(f"{rule} {page_size}; leave the flag out to get {DEFAULT_PAGE_SIZE}")
        raise ConfigError(
            f"{rule} {page_size} from SGLang for another flag or this model; add --page-size "
            f"{DEFAULT_PAGE_SIZE}"
        )
    if page_size % unit_size:
        raise ConfigError(
            f"--sparsekv-unit-size {unit_size} must divide --page-size, got {page_size}"
        )


def check_chunks(tokens: int | None, page_size: int) -> None:
    """Refuse chunks of prefill that end inside a page, which SGLang does not serve.

    Raises:
        ConfigError: with the page size, which may be ours.
    """
    if tokens is not None and tokens > 0 and not ends_a_page(tokens, page_size):
        raise ConfigError(
            f"--chunked-prefill-size must be a multiple of the page size {page_size}, got {tokens}"
        )
