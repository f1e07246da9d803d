"""Commit to a new folder again and again, and die at a later file operation each time.

    python -m tests.storage.cut_off_commit FOLDER

In a process of its own: it forks, which a process with threads must not do. Prints how many
operations one commit takes; after as many deaths the last commit is a whole one.
"""

import itertools
import os
import sys
from pathlib import Path

from storage.commit import commit

PARTS: dict[str, bytes | Path] = {"a.bin": b"first" * 10_000, "b.json": b"{}", "empty": b""}
EVENTS = {"open", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir"}


def die_at(number: int, folder: Path) -> None:
    """Let this process end just before its file operation of that number below ``folder``."""
    counter = itertools.count()
    fsync = os.fsync

    def count() -> None:
        if next(counter) == number:
            os._exit(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            count()

    def counted_fsync(descriptor: int) -> None:  # raises no event
        count()
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = counted_fsync


def main(root: Path) -> None:
    """Commit to ``root/0``, ``root/1``, and so on, until one is not cut off."""
    source = root / "source"
    source.write_bytes(b"from a file" * 1000)
    for number in itertools.count():
        child = os.fork()
        if child == 0:
            folder = root / str(number)
            die_at(number, folder)
            commit(folder, {**PARTS, "c.bin": source}, kind="model", description={})
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            sys.stdout.write(f"{number}\n")
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
