"""What ends a server in its warm-up is one line, as what ends it in a constructor."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sgl_sparsekv.backend import first_steps
from sgl_sparsekv.backend.first_steps import FIRST, end_when_told, run_in_one_line
from sgl_sparsekv.backend.starting import NET, TOLD
from tests.helpers.launcher import Launcher

from .asking import OURS
from .families import Family, write_family
from .sweep import Sweep, refusal


def fails(*_: object) -> bool:
    """Whatever a loop or a watchdog of SGLang would do."""
    raise NotImplementedError("no kernel")


def scheduler(forwards: int, dp_size: int = 1) -> SimpleNamespace:
    """One that has done so many steps."""
    return SimpleNamespace(forward_ct=forwards, server_args=SimpleNamespace(dp_size=dp_size))


@pytest.fixture
def said_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, bool], None]:
    """Whether the backend was chosen, and on a command line."""

    def said(chosen: bool, command_line: bool) -> None:
        monkeypatch.setattr(first_steps, "is_chosen", lambda args: chosen)
        monkeypatch.setattr(first_steps, "from_command_line", lambda args: command_line)

    return said


def test_the_first_steps_end_in_one_line(
    said_by: Callable[[bool, bool], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """With the status that the launcher knows."""
    said_by(True, True)
    with pytest.raises(SystemExit) as ended:
        run_in_one_line(fails, scheduler(FIRST))
    assert ended.value.code == TOLD
    words = capfd.readouterr().err
    assert words.count("\n") == 1 and f"sparsekv: error: {NET}" in words and "no kernel" in words


@pytest.mark.parametrize(
    ("chosen", "command_line", "who"),
    [
        (True, True, scheduler(FIRST + 1)),
        (True, True, scheduler(1, dp_size=2)),
        (True, False, scheduler(1)),
        (False, True, scheduler(1)),
    ],
    ids=["later", "behind a controller", "a program", "another backend"],
)
def test_elsewhere_sglang_tells_it(
    said_by: Callable[[bool, bool], None], chosen: bool, command_line: bool, who: SimpleNamespace
) -> None:
    """An end of a server that has served keeps its trace."""
    said_by(chosen, command_line)
    with pytest.raises(NotImplementedError):
        run_in_one_line(fails, who)


def test_only_a_told_end_ends_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other is SGLang's to tell."""
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr("sglang.srt.utils.kill_process_tree", lambda *args, **kwargs: None)
    alive, crashed, told = (SimpleNamespace(exitcode=code) for code in (None, 1, TOLD))
    watched = SimpleNamespace(_processes=[alive, crashed])
    assert not end_when_told(lambda watchdog: False, watched) and not ends
    watched = SimpleNamespace(_processes=[alive, told])
    end_when_told(lambda watchdog: True, watched)
    assert ends == [2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there its experts have a kernel")
def test_a_model_without_a_path_on_this_device(launcher: Launcher, tmp_path: Path) -> None:
    """SGLang's code of it dies in the warm-up: one line, exit 2, no trace."""
    model = write_family(Family("AfmoeForCausalLM"), tmp_path / "model")
    ended = Sweep(launcher, model)._start(OURS, ())
    how, words = refusal(ended)
    assert how == "refused by SGLang" and "inplace_fused_experts" in words
    assert ended.status == 2 and ended.log.count("sparsekv: error: ") == 1
