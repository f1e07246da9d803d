"""A job of the command line in a process of its own, which can be killed and given again."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from ray_jobs.reporting import METRICS_FILE
from storage.location import Location


class Driver:
    """A command in a process of its own, followed by what it reports."""

    def __init__(
        self,
        verb: str,
        recipe: Any,
        output: Location,
        *,
        home: Path,
        address: str,
        longest_seconds: float,
    ) -> None:
        """Begin ``verb`` with ``recipe`` on the cluster at ``address``, in the folder ``home``."""
        recipe = dataclasses.replace(recipe, output=str(output))
        path = home / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe)))))
        self._rows = home / f"{output.name}.run" / METRICS_FILE
        self._command = [sys.executable, "-m", "ray_jobs.cli", verb, "--config", str(path)]
        self._home, self._log = home, home / f"{output.name}.log"
        self._longest_seconds = longest_seconds
        self._environment = {**os.environ, "RAY_ADDRESS": address}
        self.process = self._begin()

    def _begin(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, env=self._environment, cwd=self._home, stdout=log, stderr=log
            )

    def kill_and_give_again(self) -> None:
        """Kill -9 the command and begin the same again."""
        self.process.kill()
        self.process.wait()
        self.process = self._begin()

    def rows(self) -> list[dict[str, Any]]:
        """What it reported so far."""
        text = self._rows.read_text() if self._rows.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half-written
        return [row for row in map(json.loads, whole) if "time" in row]

    def progress(self) -> int:
        """Rounds or blocks that it has behind it, or had before it went back."""
        return max(
            (row.get("blocks_done", row.get("round_index", -1) + 1) for row in self.rows()),
            default=0,
        )

    def wait_for_progress(self, count: int) -> None:
        """Return once it has so much behind it, or is over."""
        deadline = time.monotonic() + self._longest_seconds
        while self.progress() < count and self.process.poll() is None:
            assert time.monotonic() < deadline, f"{count} never came: {self.said()}"
            time.sleep(0.1)

    def ended(self) -> bool:
        """Whether it ends well, within the time; it is over then."""
        try:
            return self.process.wait(self._longest_seconds) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text()[-2000:]
