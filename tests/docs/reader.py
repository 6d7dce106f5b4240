"""Somebody who has read a page and types what it says, at the top of a clean copy of the tree."""

import json
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from helpers.fresh import FreshEnvironment, copy_tree, environment

from .pages import Command, commands
from .servers import HERE, DocumentedServer, same_server
from .words import Words

README = next(one for one in commands() if one.serves)
"""The serve line of README.md: pages without one of their own mean it."""


@dataclass
class Reader:
    """Keeps the servers that were started, and a copy of the tree for each block.

    Attributes:
        folder: for copies, logs and files.
        words: what capital words mean.
        fresh: where README's serve line runs: from the wheel.
    """

    folder: Path
    words: Words
    fresh: FreshEnvironment
    _servers: dict[tuple[str, ...], DocumentedServer] = field(default_factory=dict)
    _copies: dict[str, Path] = field(default_factory=dict)

    def start(self, line: Command) -> DocumentedServer:
        """Begin to start the server of a serve line, unless one that asks the same was."""
        asked = same_server(line.text)
        if asked not in self._servers:
            programs = self.fresh.folder / "bin" if asked == same_server(README.text) else HERE
            text = self.words.resolve(line.text)
            self._servers[asked] = DocumentedServer(text, self.folder, programs)
        return self._servers[asked]

    def server(self, page: str, line: int) -> DocumentedServer:
        """The server that a line of a page talks to, ready."""
        above = [c for c in commands() if c.serves and c.block.page == page and c.line <= line]
        return self.start(above[-1] if above else README).wait()

    def run(self, command: Command, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """Run a command that ends."""
        return subprocess.run(
            *self._typed(command), cwd=self.copy(command), env=environment(HERE),
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def run_until_interrupted(self, command: Command, wrote: str) -> int:
        """Run a command that goes on until Ctrl-C; ask its server something in between.

        Args:
            command: to run.
            wrote: file that it writes meanwhile.

        Returns:
            its exit status.
        """
        url = f"http://{self.server(command.block.page, command.line).address}"
        copy = self.copy(command)
        running = subprocess.Popen(*self._typed(command), cwd=copy, env=environment(HERE))
        deadline = time.monotonic() + 60
        # The subscription takes a moment; what is published before it is lost.
        while len((copy / wrote).read_text().splitlines()) < 2 if (copy / wrote).exists() else True:
            assert running.poll() is None and time.monotonic() < deadline
            body = {"text": "Ashbank", "sampling_params": {"max_new_tokens": 4}}
            subprocess.run(["curl", "-s", f"{url}/generate", "-d", json.dumps(body)], check=True)
            time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        return running.wait(30)

    def copy(self, command: Command) -> Path:
        """The copy of the tree in which a block's commands run one after another."""
        name = f"{command.block.page.replace('/', '-')}-{command.block.line}"
        if name not in self._copies:
            self._copies[name] = copy_tree(self.folder / name)
        return self._copies[name]

    def stop(self) -> None:
        """End every server."""
        for server in self._servers.values():
            server.stop()

    def _typed(self, command: Command) -> tuple[list[str]]:
        text, server = command.text, ""
        if ":30000" in text:
            server = self.server(command.block.page, command.line).address
        return (["bash", "-c", f"exec {self.words.resolve(text, server)}"],)
