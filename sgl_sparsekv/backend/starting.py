"""Between the command line and "ready": what ends a start is told in one sentence.

SGLang prints a stack trace for whatever stops it, its own refusals included, in the launcher or in
a scheduler process. Where our backend was chosen the last words are one line instead, and the
trace is in the log at level debug. A program that holds an `Engine` gets exceptions, as ever.
"""

import logging
from collections.abc import Callable
from typing import Any

from ..errors import SparseKVError, UnsupportedSetup
from .flags import exit_with, from_command_line, is_chosen

logger = logging.getLogger(__name__)

TOLD = 42
"""Exit status of a scheduler process that has told why it ends."""
_LONGEST = 600


def resolve_in_one_line(original: Callable[..., None], server_args: Any) -> None:
    """Around `ServerArgs.resolve_once`: a command line ends with one line and exit 2."""
    try:
        original(server_args)
    except Exception as error:
        if not (is_chosen(server_args) and from_command_line(server_args)):
            raise
        _tell(error)
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
            _tell(error)
            exit_with(None if told else sentence(error))
        if told:
            raise UnsupportedSetup(
                "the scheduler did not start: see the line 'sparsekv: error' above"
            ) from None
        raise


def begin_in_one_line(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Around the constructors of processes that SGLang starts: one line, and exit `TOLD`."""
    server_args = kwargs.get("server_args") or args[1]
    try:
        original(*args, **kwargs)
    except Exception as error:
        if not is_chosen(server_args):
            raise
        _tell(error)
        exit_with(sentence(error), TOLD)


def sentence(error: Exception) -> str:
    """What stopped a start, in one line."""
    words = " ".join(str(error).split())
    if isinstance(error, SparseKVError):
        return words
    if not isinstance(error, ValueError):
        words = f"{type(error).__name__}: {words}" if words else type(error).__name__
    if len(words) > _LONGEST:
        words = words[:_LONGEST] + " ..."
    return f"SGLang does not start like this: {words} (where: --log-level debug)"


def _tell(error: Exception) -> None:
    logger.debug("sparsekv: what stopped the start", exc_info=error)
