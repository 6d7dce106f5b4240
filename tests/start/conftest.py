"""SGLang with our plugins loaded, and a model that is a configuration alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.launcher import Launcher

from .resolving import resolve_line as resolve_case
from .resolving import write_config


@pytest.fixture(scope="session")
def sglang_plugins() -> None:
    """Load plugins in this process, as every SGLang process does."""
    from sglang.srt.plugins import load_plugins

    load_plugins()


@pytest.fixture(scope="package")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """SGLang imported once, forked for each server."""
    with Launcher(tmp_path_factory.mktemp("start")) as found:
        yield found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a `config.json` and nothing else."""
    return write_config(tmp_path)


@pytest.fixture
def resolve(sglang_plugins: None, model: Path) -> Any:
    """Resolve SGLang's arguments for that model, as `Engine` does before it starts anything."""
    from sglang.srt.arg_groups.overrides import resolved_view
    from sglang.srt.server_args import ServerArgs

    def resolved(**flags: Any) -> Any:
        arguments = ServerArgs(model_path=str(model), skip_tokenizer_init=True, **flags)
        arguments.resolve_once()
        return resolved_view(arguments)

    return resolved


@pytest.fixture
def resolve_line(sglang_plugins: None, model: Path) -> Callable[[Any], str | None]:
    """Parse and resolve a command line as the launcher does; the words it ends with, or None."""
    return lambda case: resolve_case(case, model)
