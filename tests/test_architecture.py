"""The dependency rules of the house, read off the imports."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = {"protection", "storage", "tune_spaces", "ray_jobs"}
ALLOWED = {
    "protection": {"protection", "torch", "torchvision", "timm", "numpy", "scipy", "PIL"}
    | {"diffusers", "torchmetrics"},
    "storage": {"storage", "torch", "torchvision", "numpy", "pyarrow", "safetensors", "PIL"}
    | {"boto3", "botocore", "s3transfer", "sklearn", "huggingface_hub"},
    "tune_spaces": {"tune_spaces", "ray"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which hides the boundary"
            names.add(node.module or "")
    return names


def offenders(path: Path, allowed: set[str]) -> list[str]:
    import sys

    roots = {name.split(".")[0] for name in imported(path)}
    return sorted(roots - allowed - set(sys.stdlib_module_names))


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_it_may(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        found = offenders(path, ALLOWED[room])
        assert not found, f"{path.relative_to(ROOT)} imports {found}: {room}/ may not"


def test_offenders_are_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import ray.train\nfrom storage.commit import commit\nimport json, torch\n")
    assert offenders(module, ALLOWED["protection"]) == ["ray", "storage"]


def test_sophon_and_sep_never_import_each_other() -> None:
    for room, other in (("sophon", "protection.sep"), ("sep", "protection.sophon")):
        for path in (ROOT / "protection" / room).rglob("*.py"):
            assert not any(name.startswith(other) for name in imported(path)), path


def test_storage_does_not_know_the_algorithms() -> None:
    for path in (ROOT / "storage").rglob("*.py"):
        text = path.read_text().lower()
        for word in ("episode", "epsilon"):
            assert word not in text, f"{path.relative_to(ROOT)} speaks of {word}"


def test_every_package_is_installed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = set(config["tool"]["setuptools"]["packages"])
    present = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for room in HOUSE
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert declared == present
