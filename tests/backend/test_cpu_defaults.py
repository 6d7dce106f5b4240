"""What a CPU's server gets where nothing was named, number by number."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_sparsekv.backend.cpu_defaults import (
    CORES_OF_RANKS,
    MAX_TOTAL_TOKENS,
    PATIENCE,
    cores_of_ranks,
    cpu_defaults,
    memory_share,
    set_cpu_environment,
)

PAGES = "THP_MEM_ALLOC_ENABLE"


def arguments(**named: Any) -> Any:
    """SGLang's, of one rank."""
    sizes = dict.fromkeys(("tp_size", "pp_size", "dp_size", "tokenizer_worker_num"), 1)
    unnamed = dict.fromkeys(("mem_fraction_static", "max_total_tokens", "max_running_requests"))
    return SimpleNamespace(
        **{**sizes, **unnamed, "model_path": "", "context_length": None, **named}
    )


@pytest.mark.parametrize("context", (None, MAX_TOTAL_TOKENS - 1))
def test_a_cache_is_no_larger_than_it_is_asked_to_be(context: int | None) -> None:
    found = cpu_defaults(arguments(context_length=context))
    assert found["max_total_tokens"] == MAX_TOTAL_TOKENS


def test_every_kind_of_rank_takes_its_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Twelve ranks of three kinds; a share has three decimals."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=3000))
    named = arguments(tp_size=2, pp_size=3, dp_size=2, model_path=str(tmp_path))
    assert cpu_defaults(named)["mem_fraction_static"] == 0.042
    (tmp_path / "weights.safetensors").write_bytes(bytes(1000))
    assert memory_share(str(tmp_path)) == 0.667


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without what is set; eight cores, of which this process has six."""
    for variable in (PAGES, CORES_OF_RANKS, PATIENCE[0]):
        monkeypatch.setenv(variable, "")  # put back what was there, at the end
        monkeypatch.delenv(variable)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0: {7, 1, 2, 3, 4, 5}}[process])
    return os.environ


def test_one_rank_and_one_tokenizer_need_huge_pages_alone(environment: Any) -> None:
    set_cpu_environment(arguments())
    assert environment[PAGES] == "1"
    assert PATIENCE[0] not in environment and CORES_OF_RANKS not in environment


def test_ranks_get_cores_and_tokenizers_patience(environment: Any) -> None:
    """Nothing that the user set is touched."""
    several = arguments(tp_size=1, pp_size=3, dp_size=1, tokenizer_worker_num=2)
    set_cpu_environment(several)
    assert environment[PATIENCE[0]] == PATIENCE[1]
    assert environment[CORES_OF_RANKS] == "1,2|3,4|5,7"
    environment.update({PAGES: "0", CORES_OF_RANKS: "0", PATIENCE[0]: "9"})
    set_cpu_environment(several)
    assert [environment[name] for name in (PAGES, CORES_OF_RANKS, PATIENCE[0])] == ["0", "0", "9"]


def test_all_kinds_of_ranks_count(environment: Any) -> None:
    set_cpu_environment(arguments(tp_size=3, dp_size=2))
    assert environment[CORES_OF_RANKS] == "1|2|3|4|5|7"


def test_more_ranks_than_cores_share_them(environment: Any) -> None:
    assert cores_of_ranks(8) == "1|2|3|4|5|7|1|2"
