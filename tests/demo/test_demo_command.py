"""The demo's servers and its command."""

import argparse
import os
from itertools import pairwise

import demo_samples as samples

from sgl_sparsekv.tooling.servers import ServerFailed


def test_the_servers_differ_in_backend_alone(tmp_path):
    from sgl_sparsekv.demo.exact import server_specs
    from sgl_sparsekv.demo.options import DemoOptions

    dense, ours = server_specs(samples.scenario(), DemoOptions(tmp_path), "tcp://127.0.0.1:1")
    shared = [flag for flag in dense.flags if flag != "torch_native"]
    assert [f for f in ours.flags if f in shared] == shared
    assert set(ours.flags) - set(shared) >= {"sparsekv", "--sparsekv-trace"}
    chunk = int(dict(pairwise(dense.flags))["--chunked-prefill-size"])
    assert chunk % 64 == 0 and chunk >= samples.TOKENS, "one chunk, in whole pages"


def test_the_command_ends_with_1_when_a_server_dies(tmp_path, monkeypatch, capsys):
    from sgl_sparsekv.commands import demo
    from sgl_sparsekv.demo import build, run

    def fail(*args):
        raise ServerFailed("the sparsekv server ended with exit code 1: out of memory")

    monkeypatch.setattr(build, "build_scenario", lambda *args: samples.scenario())
    monkeypatch.setattr(run, "run_demo", fail)
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    args = parser.parse_args(["--out", os.fspath(tmp_path), "--quiet"])
    assert demo.run(args) == 1
    assert capsys.readouterr().err.splitlines() == [
        "sparsekv demo: the sparsekv server ended with exit code 1: out of memory"
    ]
