"""The worked diffs of CONTRIBUTING.md apply to the code as it is now, and do what they say."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

DIFFS = [block.text for block in blocks(ROOT / "CONTRIBUTING.md", "diff")]
USE = """
import torch
from protection.audit.countermeasures import COUNTERMEASURES
from protection.audit.methods import AUDIT_METHODS
from protection.audit.threat_models import THREAT_MODELS, attacks_of
from protection.sophon.config import SophonConfig
from protection.sophon.losses import SUPPRESSION_LOSSES
from storage.commit import commit, is_committed, read_part
from storage.errors import AlreadyCommittedError

SophonConfig(suppression_loss="true_class_margin")
logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 5.0, 1.0]])
loss = SUPPRESSION_LOSSES["true_class_margin"](logits, torch.tensor([0, 0]))
assert loss.item() == 1.0, loss  # (1 + 2 - 1 + 0) / 2

assert {attack.method for attack in attacks_of(THREAT_MODELS["default"])} == set(AUDIT_METHODS)

image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
equalized = COUNTERMEASURES["equalize"].purify(image)
assert equalized.amax() > 200 and equalized.dtype == torch.uint8

commit("memory://here/model", {"a.txt": b"a"}, kind="model", description={})
assert is_committed("memory://here/model") and not is_committed("memory://here")
assert read_part("memory://here/model", "a.txt") == b"a"
try:
    commit("memory://here/model", {"a.txt": b"b"}, kind="model", description={})
except AlreadyCommittedError:
    print("done")
"""


def test_worked_diffs_apply_one_after_another_and_work(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    assert len(DIFFS) == 4
    for room in ("protection", "storage", "ray_jobs", "tests/storage"):
        shutil.copytree(ROOT / room, tmp_path / room)
    for diff in DIFFS:
        # -C1: one line of context is enough, so that a neighbouring change does not count.
        done = subprocess.run(
            ["git", "apply", "-C1", "--whitespace=error", "-"],
            cwd=tmp_path,
            input=diff,
            capture_output=True,
            text=True,
            check=False,
            env={"GIT_CEILING_DIRECTORIES": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, f"{done.stderr}\n{diff}"
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr
