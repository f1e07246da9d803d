"""`ringfence completion`: a script that makes a shell complete what is typed after `ringfence`.

It is made once and holds every command and field, so that completing starts no Python.
"""

from dataclasses import dataclass
from typing import Final

from ray_jobs.errors import UsageError

SHELLS: Final = ("bash", "zsh", "tcsh")


@dataclass(frozen=True)
class Completion:
    """Print what makes a shell complete commands, fields and file names."""

    shell: str
    """bash, zsh or tcsh. Where to put it, for bash:
    `~/.local/share/bash-completion/completions/ringfence`; for zsh: `_ringfence` in a folder of
    its `fpath`."""

    def __post_init__(self) -> None:
        """Reject a shell that nothing is known of."""
        if self.shell not in SHELLS:
            raise ValueError(f"shell is {self.shell!r}; expected one of {', '.join(SHELLS)}")


def run(job: Completion) -> str:
    """Return the script.

    Raises:
        UsageError: what writes such scripts is not installed.
    """
    # Here: the command line imports this module by its name, and has to be there first.
    from ray_jobs.cli import build_parser
    from ray_jobs.commands import COMMANDS

    parser, _ = build_parser(COMMANDS)
    try:
        script: str = parser.get_completion_script(f"shtab-{job.shell}")
    except ValueError as error:
        raise UsageError(
            f"shell is {job.shell}, for which no script can be written ({error}); expected the "
            "package shtab (pip install shtab)"
        ) from error
    return script
