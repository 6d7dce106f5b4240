import io
import socket
import sys
import time

import pytest

from sgl_sparsekv.tooling import servers
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.servers import ServerFailed, ServerProcess, ServerSpec, serve

QUIET = Progress(io.StringIO(), quiet=True)
SLEEPS = "import subprocess, sys, time\n"
SLEEPS += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
SLEEPS += "print('child', child.pid, flush=True)\ntime.sleep(60)\n"
DIES = "import sys\nprint('loading')\nsys.exit('ValueError: no such model')\n"


@pytest.fixture
def stand_in(monkeypatch):
    """Let `serve` start a script instead of SGLang."""

    def use(script):
        real = servers.subprocess.Popen

        def start(command, **kwargs):
            return real([sys.executable, "-c", script], **kwargs)

        monkeypatch.setattr(servers.subprocess, "Popen", start)

    return use


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def child_of(process):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        words = process.log.read_text().split()
        if words[:1] == ["child"]:
            return int(words[1])
        time.sleep(0.02)
    raise AssertionError("the stand-in did not start")


def test_a_server_that_dies_gives_one_sentence_with_its_last_words(stand_in, tmp_path):
    stand_in(DIES)
    with (
        pytest.raises(ServerFailed) as caught,
        serve([ServerSpec("dense", ())], tmp_path, QUIET),
    ):
        pass
    message = str(caught.value)
    assert "the dense server ended with exit code 1: ValueError: no such model" in message
    assert str(tmp_path / "dense.log") in message
    assert "\n" not in message


def test_a_server_that_is_never_ready_is_given_up_and_ended(stand_in, tmp_path):
    stand_in(SLEEPS)
    with (
        pytest.raises(ServerFailed, match="not ready after"),
        serve([ServerSpec("dense", ())], tmp_path, QUIET, timeout=0.1),
    ):
        pass


def test_stop_ends_what_the_server_started(stand_in, tmp_path):
    stand_in(SLEEPS)
    process = ServerProcess(ServerSpec("dense", ()), tmp_path)
    child = child_of(process)
    assert alive(child)
    process.stop()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
    assert not alive(process.pid)
    process.stop()


def test_an_exception_ends_the_servers(stand_in, tmp_path, monkeypatch):
    stand_in(SLEEPS)
    monkeypatch.setattr(ServerProcess, "ready", lambda self: True)
    pids = []
    with (
        pytest.raises(RuntimeError),
        serve([ServerSpec("a", ()), ServerSpec("b", ())], tmp_path, QUIET) as running,
    ):
        pids = [server.pid for server in running.values()]
        raise RuntimeError
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_ports_are_free(monkeypatch):
    with socket.socket() as taken:
        taken.bind((servers.HOST, servers.free_port()))
        found = iter((taken.getsockname()[1], 0))
        monkeypatch.setattr(servers.secrets, "choice", lambda ports: next(found))
        assert servers.free_port() == 0, "a port that is taken was given"


def test_no_connection_is_given_the_port_of_a_server():
    """Linux gives out 32768 to 60999, others 49152 and more."""
    assert all(servers.free_port() < 32_768 for _ in range(20))


def test_progress_says_little_where_lines_stay():
    out = io.StringIO()
    progress = Progress(out, interval=3600)
    for _ in range(5):
        progress.wait("waiting")
    progress.say("done")
    assert [line.partition("] ")[2] for line in out.getvalue().splitlines()] == ["waiting", "done"]
