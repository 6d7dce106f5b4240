"""The servers that tests share: started in the background, a few at a time, ended by pid.

Most are forks of one launcher that has SGLang imported, with the variables that find mistakes set.
"""

import time
from pathlib import Path

from helpers.launcher import ForkedServer, Launcher

from sgl_sparsekv.tooling.servers import ServerFailed, ServerProcess, ServerSpec, free_port

STRICT = (
    ("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1"),
    ("SGLANG_CHECK_KV_PAGE_INVARIANTS", "1"),
    ("SGLANG_DEBUG_MEMORY_POOL", "1"),
    ("SGLANG_ENABLE_ASYNC_ASSERT", "1"),
)
# Several servers and their clients share the cores: a second thread would wait at every barrier.
ONE_THREAD = (("OMP_NUM_THREADS", "1"),)
TWO_RANKS = (("SGLANG_CPU_OMP_THREADS_BIND", "0|1"),)
RETRACT = (("SGLANG_TEST_RETRACT", "1"), ("SGLANG_TEST_RETRACT_INTERVAL", "3"))
READ_AT_IMPORT = {"SGLANG_PLUGINS", "TRITON_INTERPRET"}
"""Variables that a fork would set too late: whoever needs one is forked from a launcher of his."""
# An idle scheduler polls without pause and takes a core from the tests unless told to sleep.
COMMON = ("--device", "cpu", "--random-seed", "0", "--enable-metrics", "--sleep-on-idle")
LEVELS = ("quest_two_level", "quest_two_level_exact")
INTERPRETED = (
    *LEVELS,
    *("clusterkv", "full", "oracle", "pqcache", "quest", "quest_int8", "residual_pq", "shadowkv"),
    "streaming",
)
"""Methods of the server whose kernels are interpreted."""
SEGMENTED = ("clusterkv", "pqcache", "quest_two_level", "residual_pq", "shadowkv")
"""Methods that read segment records, or chunks smaller than a unit."""
VIEWS = ("adakv", "h2o", "kvcompress", "pyramidkv", "snapkv")
"""Methods that keep views."""
SPARSE = (
    *("--attention-backend", "sparsekv", "--sparsekv-check", "raise"),
    *("--sparsekv-check-interval", "5", "--sparsekv-budget", "512", "--sparsekv-dense-layers", "0"),
    "--sparsekv-methods",
    ",".join(("full", "oracle", "quest", "mean_std", "streaming", *SEGMENTED, *VIEWS)),
)
TIGHT = (
    "--max-total-tokens",
    "8192",
    "--chunked-prefill-size",
    "512",
    "--max-running-requests",
    "16",
)
ROOMY = ("--max-total-tokens", "65536", "--chunked-prefill-size", "2048")


class Fleet:
    """Servers by name; each is started once, and can be started long before it is needed."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self._launchers = {"": Launcher(folder, dict((*ONE_THREAD, *STRICT)))}
        self._running: dict[str, ServerProcess] = {}
        self._ready: set[str] = set()
        self.trace_port = free_port()
        # Each server opens several ports by itself; traces take this and the next seven.
        self.catalog: dict[str, ServerSpec] = {
            spec.name: spec
            for spec in (
                self._spec("native", ("--attention-backend", "torch_native", *ROOMY)),
                self._spec(
                    "ours",
                    (*SPARSE, *ROOMY, *self.trace_flags(0), "--enable-streaming-session"),
                    STRICT,
                ),
                self._spec(
                    "tight", (*SPARSE, *TIGHT, "--enable-streaming-session"), STRICT + RETRACT
                ),
                self._spec(
                    "python_tree",
                    (*SPARSE, *TIGHT, "--page-size", "16", "--enable-mixed-chunk"),
                    (*STRICT, ("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "python")),
                ),
                self._spec(
                    "no_radix",
                    (
                        *SPARSE,
                        *TIGHT,
                        *("--page-size", "32", "--disable-radix-cache"),
                        "--disable-overlap-schedule",
                    ),
                    STRICT,
                ),
                self._spec(
                    "interpreted",
                    (
                        *("--attention-backend", "sparsekv", "--sparsekv-device", "triton"),
                        *("--sparsekv-dense-below", "0", "--sparsekv-dense-layers", "0"),
                        *("--sparsekv-budget", "128", "--sparsekv-check", "raise"),
                        *("--sparsekv-reselect-every", "3"),
                        *("--sparsekv-measure", "true", "--sparsekv-serve-coverage", "true"),
                        *("--sparsekv-methods", ",".join(INTERPRETED)),
                        *("--sparsekv-check-interval", "3", "--dtype", "float32"),
                        *("--context-length", "2048", "--max-total-tokens", "8192"),
                        *("--chunked-prefill-size", "512", "--max-running-requests", "13"),
                    ),
                    (*STRICT, ("TRITON_INTERPRET", "1")),
                ),
                self._spec(
                    "two_ranks",
                    (*SPARSE, *ROOMY, "--tp", "2", *self.trace_flags(2)),
                    (*STRICT, *TWO_RANKS),
                ),
                self._spec(
                    "two_stages",
                    (*SPARSE, *ROOMY, "--pp-size", "2", *self.trace_flags(4)),
                    TWO_RANKS,
                ),
                self._spec(
                    "two_replicas",
                    (*SPARSE, *ROOMY, "--dp-size", "2", *self.trace_flags(6)),
                    TWO_RANKS,
                ),
            )
        }

    def trace_endpoint(self, offset: int) -> str:
        """ZMQ endpoint of a server's first rank."""
        return f"tcp://127.0.0.1:{self.trace_port + offset}"

    def trace_flags(self, offset: int) -> tuple[str, str]:
        """Flags that publish selections there."""
        return ("--sparsekv-trace", self.trace_endpoint(offset))

    def start(self, name: str, typed: bool = False) -> None:
        """Begin to start a server, unless it was; by its command where `typed`."""
        if name in self._running:
            return
        if typed:
            self._running[name] = ServerProcess(self.catalog[name], self.folder)
            return
        spec, own = self.catalog[name], ""
        if READ_AT_IMPORT & dict(spec.env).keys():
            own = name
            (self.folder / own).mkdir()
            self._launchers[own] = Launcher(self.folder / own, dict(spec.env))
        self._running[name] = ForkedServer(spec, self.folder, self._launchers[own])

    def get(self, name: str, timeout: float = 600.0) -> ServerProcess:
        """The server, ready to answer; asked for its health once, as that costs it a second."""
        self.start(name)
        server, deadline = self._running[name], time.monotonic() + timeout
        server.check()
        while name not in self._ready and not server.ready():
            if time.monotonic() > deadline:
                raise ServerFailed(f"{name} was not ready after {timeout:.0f} s: see {server.log}")
            time.sleep(0.5)
        self._ready.add(name)
        return server

    def stop(self, name: str) -> None:
        """End a server."""
        server = self._running.pop(name, None)
        self._ready.discard(name)
        if server is not None:
            server.stop()
        if name in self._launchers:
            self._launchers.pop(name).stop()

    def stop_all(self) -> None:
        """End every server, and what they are forked from."""
        for name in list(self._running):
            self.stop(name)
        self._launchers[""].stop()

    def _spec(
        self, name: str, flags: tuple[str, ...], env: tuple[tuple[str, str], ...] = ()
    ) -> ServerSpec:
        return ServerSpec(
            name, ("--model-path", str(self.model), *COMMON, *flags), (*ONE_THREAD, *env)
        )
