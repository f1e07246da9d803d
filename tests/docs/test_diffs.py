"""The worked diffs of CONTRIBUTING.md apply to the code as it is now, and do what they say."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from protection.audit.attacks import NO_MEANS, Setup
from tests.docs.pages import ROOT, blocks
from tests.protection.audit.attacking import attack, network

DIFFS = [block.text for block in blocks(ROOT / "CONTRIBUTING.md", "diff")]
# In a process of its own, which has the changed storage/ alone, and starts in a moment.
USE_OF_A_STORE = """
from storage.commit import commit, is_committed, read_part
from storage.errors import AlreadyCommittedError

commit("memory://here/model", {"a.txt": b"a"}, kind="model", description={})
assert is_committed("memory://here/model") and not is_committed("memory://here")
assert read_part("memory://here/model", "a.txt") == b"a"
try:
    commit("memory://here/model", {"a.txt": b"b"}, kind="model", description={})
except AlreadyCommittedError:
    print("done")
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with every diff applied, one after another."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("changed")
    for room in ("protection", "storage", "ray_jobs", "tests/storage"):
        shutil.copytree(ROOT / room, folder / room)
    for diff in DIFFS:
        # -C1: one line of context is enough, so that a neighbouring change does not count.
        done = subprocess.run(
            ["git", "apply", "-C1", "--whitespace=error", "-"],
            cwd=folder,
            input=diff,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        )
        assert done.returncode == 0, f"{done.stderr}\n{diff}"
    return folder


def load(path: Path) -> ModuleType:
    """The module at ``path``, beside the one that is installed."""
    spec = importlib.util.spec_from_file_location(f"changed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_diff_for_each_kind_of_thing() -> None:
    assert len(DIFFS) == 4


def test_the_loss_is_zero_where_another_class_leads_by_one(changed: Path) -> None:
    losses = load(changed / "protection" / "sophon" / "losses.py").SUPPRESSION_LOSSES[
        "classification"
    ]
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 5.0, 1.0]])
    loss = losses["true_class_margin"](logits, torch.tensor([0, 0]))
    assert loss.item() == (1 + 2 - 1 + 0) / 2


def test_the_method_trains_the_head_and_the_first_stage(changed: Path) -> None:
    module = load(changed / "protection" / "audit" / "methods.py")
    model = network()
    (group,) = module.AUDIT_METHODS["first_stage"](Setup(model, attack(), NO_MEANS, 0))
    trained = {id(parameter) for parameter in group.parameters}
    names = {name for name, p in model.network.named_parameters() if id(p) in trained}
    assert {"fc.weight", "conv1.weight"} <= names
    assert not any(name.startswith("layer4") for name in names)
    assert "first_stage" in (changed / "protection/audit/threat_models.py").read_text()


def test_the_countermeasure_spreads_values_over_all_levels(changed: Path) -> None:
    purification = load(changed / "protection" / "audit" / "purification.py")
    images = torch.arange(64, dtype=torch.uint8).repeat(16).view(1, 1, 32, 32)
    assert purification.equalize(images).amax() > 200
    assert "purification.equalize" in (changed / "protection/audit/countermeasures.py").read_text()


def test_the_store_keeps_a_commit(changed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE_OF_A_STORE],
        cwd=changed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr
