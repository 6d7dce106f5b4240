"""Somebody who has read a page and types what it says, at the top of a clean copy of the tree."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from helpers.fresh import FreshEnvironment, copy_tree, environment, run
from helpers.launcher import Launcher

from .pages import Command, commands
from .servers import HERE, DocumentedServer, Start, forked, same_server, typed
from .words import SERVER, Words

README = next(one for one in commands() if one.serves)
"""The serve line of README.md: pages without one of their own mean it."""


@dataclass
class Reader:
    """Keeps the servers that were started, and a copy of the tree for each block.

    Attributes:
        folder: for copies, logs and files.
        words: what capital words mean.
        fresh: where README's serve line runs: from the wheel.
        launcher: what other serve lines are forked from; None types them, too.
    """

    folder: Path
    words: Words
    fresh: FreshEnvironment
    launcher: Launcher | None = None
    _servers: dict[tuple[str, ...], DocumentedServer] = field(default_factory=dict)
    _copies: dict[str, Path] = field(default_factory=dict)

    def server(self, page: str, line: int) -> DocumentedServer:
        """The server that a line of a page talks to, ready.

        README's stays, for all pages; of the others one at a time has memory.
        """
        above = [c for c in commands() if c.serves and c.block.page == page and c.line <= line]
        said = (above or [README])[-1].text
        asked, home = same_server(said), same_server(README.text)
        if asked not in self._servers:
            for other in self._servers.keys() - {home}:
                self._servers.pop(other).stop()
            text = self.words.resolve(said)
            self._servers[asked] = DocumentedServer(text, self.folder, self._start(asked == home))
        return self._servers[asked].wait()

    def _start(self, from_wheel: bool) -> Start:
        if self.launcher is not None and not from_wheel:
            return partial(forked, launcher=self.launcher)
        return partial(typed, programs=self.fresh.folder / "bin" if from_wheel else HERE)

    def run(self, command: Command, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """Run a command that ends."""
        copy = self.copy(command)
        return run(["bash", "-c", self.typed(command)], copy, HERE, timeout)

    def run_until_interrupted(self, command: Command, wrote: str) -> int:
        """Run a command that goes on until Ctrl-C, and ask its server something in between.

        Args:
            command: to run.
            wrote: file that it writes meanwhile.

        Returns:
            its exit status.
        """
        server = self.server(command.block.page, command.line)
        body = json.dumps({"text": "Ashbank", "sampling_params": {"max_new_tokens": 4}})
        file = self.copy(command) / wrote
        typed = ["bash", "-c", f"exec {self.typed(command)}"]
        # What a shell runs in the background does not hear Ctrl-C.
        hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        running = subprocess.Popen(typed, cwd=file.parent, env=environment(HERE), preexec_fn=hears)
        try:
            deadline = time.monotonic() + 60
            # The subscription takes a moment, and what is published before it is lost.
            while not file.exists() or len(file.read_text().splitlines()) < 2:
                assert running.poll() is None and time.monotonic() < deadline
                server.ask(body)
                time.sleep(0.5)
            running.send_signal(signal.SIGINT)
            return running.wait(30)
        finally:
            running.kill()

    def typed(self, command: Command) -> str:
        """A command as the reader types it."""
        asks = SERVER.search(command.text) is not None
        server = self.server(command.block.page, command.line).address if asks else ""
        return self.words.resolve(command.text, server)

    def copy(self, command: Command) -> Path:
        """The copy of the tree in which a block's commands run one after another."""
        name = f"{command.block.page.replace('/', '-')}-{command.block.line}"
        if name not in self._copies:
            self._copies[name] = copy_tree(self.folder / name)
            _set_up(self._copies[name])
        return self._copies[name]

    def stop(self) -> None:
        """End every server."""
        for server in self._servers.values():
            server.stop()


def _set_up(copy: Path) -> None:
    """Give a copy what `make setup` would: this environment, and the word that it is complete."""
    own = copy / ".venv"
    own.mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (own / part.name).symlink_to(part)
    (own / ".ready").touch()
