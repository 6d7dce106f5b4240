"""Between the command line and "ready": what ends a start is told in one sentence.

SGLang prints a stack trace for whatever stops it, its own refusals included, in the launcher or in
a scheduler process. Where our backend was chosen the last words are one line instead, and the
trace is in the log at level debug. A program that holds an `Engine` gets exceptions, as ever.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import SparseKVError, UnsupportedSetup
from .flags import exit_with, from_command_line, is_chosen

logger = logging.getLogger(__name__)

TOLD = 42
"""Exit status of a scheduler process that has told why it ends."""
NET = "SGLang does not start like this: "
"""Before what SGLang or a library said."""
_LONGEST = 600
_ASIDE = " This could be because the operator doesn't exist for this backend"
"""Of torch, before a list of all that it can dispatch to."""


def resolve_in_one_line(original: Callable[..., None], server_args: Any) -> None:
    """Around `ServerArgs.resolve_once`: a command line ends with one line and exit 2."""
    try:
        original(server_args)
    except Exception as error:
        if not (is_chosen(server_args) and from_command_line(server_args)):
            raise
        tell(error)
        exit_with(sentence(error))


def launch_in_one_line(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around `Engine._launch_subprocesses`: the same for what happens until the server is ready.

    Raises:
        UnsupportedSetup: to a program; a scheduler process has told why it ended.
    """
    server_args = kwargs.get("server_args") or args[1]
    try:
        return original(*args, **kwargs)
    except Exception as error:
        if not is_chosen(server_args):
            raise
        told = f"exit code: {TOLD})" in str(error)
        if from_command_line(server_args):
            tell(error)
            exit_with(None if told else sentence(error))
        if told:
            raise UnsupportedSetup(
                "the scheduler did not start: see the line 'sparsekv: error' above"
            ) from None
        raise


def begin_in_one_line(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Around the constructors of processes that SGLang starts: one line, and exit `TOLD`."""
    server_args = kwargs.get("server_args") or args[1]
    if not is_chosen(server_args):
        return original(*args, **kwargs)
    try:
        with _traces_at_debug():
            original(*args, **kwargs)
    except Exception as error:
        tell(error)
        exit_with(sentence(error), TOLD)


def sentence(error: Exception) -> str:
    """What stopped a start, in one line."""
    words = " ".join(str(error).split()).partition(_ASIDE)[0]
    if isinstance(error, SparseKVError):
        return words
    if not isinstance(error, ValueError):
        words = f"{type(error).__name__}: {words or _code_of(error)}"
    if len(words) > _LONGEST:
        words = words[:_LONGEST] + " ..."
    return f"{NET}{words} (where: --log-level debug)"


def _code_of(error: Exception) -> str:
    """The line that raised an error without words."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].name}: {frames[-1].line}" if frames else ""


@contextmanager
def _traces_at_debug() -> Iterator[None]:
    """What SGLang logs of an error that it raises as well: the message alone, unless at debug."""

    def without_trace(record: logging.LogRecord) -> bool:
        if not logger.isEnabledFor(logging.DEBUG):
            record.exc_info = record.exc_text = None
        return True

    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(without_trace)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(without_trace)


def tell(error: Exception) -> None:
    """Log what stopped a start, with its trace, at debug."""
    logger.debug("sparsekv: what stopped the start", exc_info=error)
