"""The model of the second act: fetched by a process of its own while the first act starts."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from ...errors import SparseKVError

FOLDER_NAMES = {"smollm2": "SmolLM2-135M-Instruct"}
"""What a model is called, by the folder that it is fetched into."""
NICE = 19
"""It gives way to whatever is timed."""


class NoModel(SparseKVError):
    """The model cannot be had; says why."""


class Fetching:
    """`sparsekv model smollm2` in the background; a folder that has the model is left alone."""

    def __init__(self, folder: Path) -> None:
        """Start; `wait` says what came of it."""
        self.folder = folder
        self._log = folder.with_suffix(".log")
        command = (sys.executable, "-m", "sgl_sparsekv.cli", "model", "smollm2", str(folder))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)

    def wait(self) -> Path:
        """The model's folder, once it is there.

        Raises:
            NoModel: it cannot be had.
        """
        if self._process.wait() == 0:
            return self.folder
        lines = self._log.read_text(errors="replace").replace("\r", "\n").splitlines()
        said = [line for line in lines if line.startswith("sparsekv")]
        raise NoModel((said or lines or ["it said nothing"])[-1].partition(": ")[2])

    def __enter__(self) -> "Fetching":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it if it is still at work."""
        self._process.terminate()
        self._process.wait()
