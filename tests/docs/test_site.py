"""The site builds without a warning, loads nothing from elsewhere, and the reference is current."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.scripts.reference import FOLDER, pages
from tests.docs.pages import ROOT


class Loaded(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("img", "script", "iframe") and given.get("src"):
            self.addresses.append(str(given["src"]))
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "modulepreload"):
            self.addresses.append(str(given["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    # In a process of its own: its plugins configure logging and warnings for everybody.
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_site_loads_nothing_from_elsewhere_and_all_that_it_loads_is_there(site: Path) -> None:
    found = [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]
    assert len(found) >= 15
    for page in found:
        addresses = Loaded(page).addresses
        assert addresses
        for address in addresses:
            assert not re.match(r"(\w+:)?//", address), (page, address)
            assert (page.parent / address).is_file(), (page, address)


def test_drawings_are_in_the_site(site: Path) -> None:
    text = (site / "how-it-works" / "index.html").read_text()
    assert len(re.findall(r"<img[^>]+drawings/\w+\.svg", text)) == 2


@pytest.mark.parametrize("name", pages())
def test_reference_is_as_the_dataclasses_are_now(name: str) -> None:
    assert (FOLDER / name).read_text() == pages()[name], (
        f"docs/reference/{name} is out of date; run python -m docs.scripts.reference"
    )


def test_every_field_of_the_reference_is_explained() -> None:
    for text in pages().values():
        entries = re.findall(r"^(`\w+` · .*)\n:   (.*)$", text, re.MULTILINE)
        assert entries
        assert all(said.strip() for _, said in entries), entries
