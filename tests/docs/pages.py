"""The pages that a reader may copy from, and what stands in their code blocks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent.parent
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0].removeprefix("# ")

    @property
    def file_name(self) -> str | None:
        """What the block's first line says that it is the content of; None: of no file."""
        if self.language == "yaml" and " --config " in self.first_line:
            return self.first_line.rpartition(" --config ")[2]
        return self.first_line if re.fullmatch(r"\w+\.py", self.first_line) else None


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The blocks of ``page``, all or those in a language."""
    found = [Block(*match) for match in _BLOCK.findall(page.read_text())]
    return [block for block in found if language in (None, block.language)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def write_files(page: Path, folder: Path) -> None:
    """Write what the page says are files into ``folder``, where the recipes are, too."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for block in blocks(page):
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.text)


def commands(page: Path) -> Iterator[str]:
    """Every line that a reader would type."""
    for block in blocks(page, ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line
