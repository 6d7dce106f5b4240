"""Bad input is one line and exit 2; help needs nothing but the standard library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_sparsekv import cli
from sgl_sparsekv.commands import doctor

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'sglang', 'numpy', 'zmq', 'orjson', 'yaml', 'uvloop'}:
            raise ImportError(f'{name} is broken')
sys.meta_path.insert(0, Block())
from sgl_sparsekv.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_libraries(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK, *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["doctor", "--help"], ["watch", "--help"], ["eval", "--help"]]
)
def test_help_runs_when_imports_are_broken(arguments: list[str]) -> None:
    done = without_libraries(*arguments)
    assert done.returncode == 0 and "usage: sparsekv" in done.stdout, done.stderr


def test_a_command_whose_imports_are_broken_points_to_the_doctor() -> None:
    done = without_libraries("watch", "tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "sparsekv doctor" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["--nope"], ["watch"], ["watch", "x", "--layer", "y"], ["doctor", "extra"]],
)
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bad_endpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", "http://x"]) == 2
    assert "endpoint must be a ZMQ address" in capsys.readouterr().err


def test_the_doctor_survives_broken_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    findings = doctor.diagnose(timeout=5.0)
    broken = {finding.name: finding for finding in findings if finding.status == doctor.FAILURE}
    assert set(broken) >= {"self-test", "hooks"}
    assert all(finding.remedy for finding in broken.values())


def test_a_probe_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(slow))
    report, problem = doctor._probe("any", timeout=0.2)
    assert report is None and "within 0.2 seconds" in problem


def test_a_kernel_that_disagrees_is_a_failure() -> None:
    device = {"device": "cpu", "available": True, "problem": "select is off by 3", "methods": []}
    report = {"gpus": [], "torch_threads": 2, "devices": [device]}
    finding = doctor.ops_findings(report, "")[-1]
    assert finding.status == doctor.FAILURE and "select is off" in finding.detail


@pytest.mark.parametrize(("gpus", "device"), [([], "triton"), (["one"], "cpu")])
def test_kernels_that_this_machine_does_not_serve_with_may_be_missing(
    gpus: list[str], device: str
) -> None:
    """Those that it does may not."""
    lacks = {"device": device, "available": False, "problem": "not here", "methods": []}
    for there, status in ((gpus, doctor.INFO), ([] if gpus else ["one"], doctor.FAILURE)):
        report = {"gpus": there, "torch_threads": 2, "devices": [lacks]}
        finding = doctor.ops_findings(report, "")[-1]
        assert finding.status == status and finding.detail == "not here"


def test_metadata_of_a_model(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    config |= {"num_key_value_heads": 8, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    finding = doctor.model_finding(tmp_path, {"default_planes": 2, "unit_size": 16})
    assert finding.status == doctor.OK
    assert "131072 bytes of KV and 8192 bytes of page metadata" in finding.detail
    assert "(6.25%)" in finding.detail and "1024 MiB" in finding.detail
    assert doctor.model_finding(tmp_path / "no", None).status == doctor.FAILURE
