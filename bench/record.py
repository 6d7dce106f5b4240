"""How a GPU benchmark records what it measured.

    run = header("h200", bandwidth=4.31)
    rows = [row("attention", Workload(32768, 8), 31.0, run, peer=("fa3", 253.5))]
    save(run, rows)

Floors, ratios and targets are worked out here, so that every benchmark counts them alike.
"""

import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from bench.model import GPUS, MODELS, Workload, find
from bench.results_schema import Header, Row, save
from bench.targets import JUDGED, NAMES, TARGETS

__all__ = ["Header", "Row", "header", "row", "save"]

PACKAGES = ("torch", "triton", "flashinfer-python", "sgl-kernel", "sglang", "sgl-sparsekv")
QUERY = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm")


def header(
    gpu: str,
    bandwidth: float | None = None,
    model: str = "llama-3.1-8b",
    commit: str | None = None,
) -> Header:
    """Header of a run on this machine, now.

    Args:
        gpu: key of `bench.model.GPUS`.
        bandwidth: measured read bandwidth in 1e12 bytes per second; None: the table's.
        model: key of `bench.model.MODELS`.
        commit: for a copy without its history; None: asked of git.

    Raises:
        ValueError: no such GPU or model.
    """
    machine = find(GPUS, "gpu", gpu)
    find(MODELS, "model", model)
    if commit is None:
        from sgl_sparsekv.tooling.environment import commit as ask

        commit = ask()
    return Header(
        *(gpu, model, bandwidth or machine.tb_per_s, bandwidth is not None, commit),
        *(datetime.now(UTC).isoformat(timespec="seconds"), device_facts(), package_versions()),
    )


def row(
    name: str,
    work: Workload,
    measured_us: float,
    run: Header,
    *,
    page: int = 64,
    median_us: float | None = None,
    peer: tuple[str, float] | None = None,
    note: str = "",
) -> Row:
    """One measurement with its floor, ratios and targets.

    Args:
        name: a key of `bench.targets.NAMES`, which says what is timed, per layer or per step.
        work: shape; its `page` is the unit that is scored.
        measured_us: least of the repeats, microseconds.
        run: header of the run.
        page: slots per page of the pool.
        median_us: median of the repeats.
        peer: what was timed beside it, and its least of the repeats in microseconds.
        note: what a reader must know.

    Raises:
        ValueError: an unknown name, or a time that is not positive.
    """
    who, peer_us = peer or (None, None)
    for what, us in (("measured_us", measured_us), ("peer", peer_us)):
        if us is not None and us <= 0:
            raise ValueError(f"{what} must be above 0, got {us}")
    floor = find(NAMES, "name", name).floor(run.machine, MODELS[run.model], work)
    judged = run.gpu in JUDGED
    found = tuple(key for key, one in TARGETS.items() if judged and one.applies(name, work, page))
    shape = (work.context, work.batch, page, work.page, work.budget, work.method)
    gain = None if peer_us is None else peer_us / measured_us
    ratio = measured_us / floor if floor else None
    return Row(name, *shape, measured_us, median_us, floor, ratio, who, peer_us, gain, found, note)


def device_facts() -> dict[str, str]:
    """The first GPU as its driver describes it, clocks as of now; empty where none answers."""
    command = ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    answers = done.stdout.splitlines()[0].split(", ")
    return dict(zip(QUERY, answers, strict=True))


def package_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
