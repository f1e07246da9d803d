"""What a result table must say of where it was measured."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def describe_environment() -> str:
    """Markdown lines: date, device, versions, commit."""
    root = Path(__file__).parent.parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()}-core {platform.machine()} CPU"
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "timm"))
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{today}, {device}, Python {platform.python_version()}, {versions}, commit {commit}.\n"
