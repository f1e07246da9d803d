"""The page of a report: alone in the world, well-formed, legible, and the same every time."""

import itertools
import re
import tomllib
from collections import Counter
from html.parser import HTMLParser
from pathlib import PurePath

import pytest

from ray_jobs.reports.data_view import data_view
from ray_jobs.reports.model_view import model_view
from ray_jobs.reports.page import to_html
from ray_jobs.reports.views import View
from tests.ray_jobs.conftest import ROOT
from tests.ray_jobs.reports.audits import (
    RUN,
    attack,
    curve,
    data_report_of,
    model_report,
    two_attacks,
)

VOID = {"meta", "link", "img", "br"}
TEMPLATES = ROOT / "ray_jobs/reports/templates"
HOSTILE = "<script>alert('x')</script> & \"co\""


class Page(HTMLParser):
    """Every element of a page with its attributes; fails where a tag is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def model_page_view() -> View:
    return model_view(
        model_report(
            *(
                attack(
                    f"{method} {optimizer}",
                    [curve(0.1, gain), curve(0.2, gain)],
                    method=method,
                    optimizer=optimizer,
                    finetune_lr=0.1,
                )
                for method, gain in (("all_layers", 0.9), ("head_only", 0.3))
                for optimizer in ("sgd", "adam")
            ),
            attack("kind", [curve(0.5, 0.7), curve(0.5, 0.8)], role="benign", domain="SVHN"),
            not_tested=[HOSTILE],
        )
    )


def data_page_view() -> View:
    protected = {"none": [curve(0.2)] * 2, "jpeg_10": [curve(0.4)] * 2}
    of_one = {"protected": protected, "clean": [curve(0.9)] * 2}
    return data_view(data_report_of({"timm/one": of_one, HOSTILE: of_one}))


def draw_pages() -> dict[str, str]:
    return {
        "model": to_html(model_page_view(), RUN),
        "data": to_html(data_page_view(), RUN, picture=b"\x89PNG"),
    }


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return draw_pages()


@pytest.fixture(params=["model", "data"])
def text(request: pytest.FixtureRequest, pages: dict[str, str]) -> str:
    return pages[request.param]


def test_equal_reports_give_equal_pages(pages: dict[str, str]) -> None:
    assert draw_pages() == pages


def test_page_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                assert value.startswith(("data:", "#"))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = {"http-equiv": "Content-Security-Policy"}
    (found,) = [meta for meta in page.of("meta") if policy.items() <= meta.items()]
    assert found["content"].startswith("default-src 'none'; img-src data:;")


def test_names_are_shown_not_obeyed(text: str) -> None:
    assert "alert(" in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;co&#34;" in text


def test_page_can_be_heard(text: str) -> None:
    page = Page(text)
    assert page.of("html")[0]["lang"] == "en"
    assert "<title>" in text
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(level <= before + 1 for before, level in itertools.pairwise(levels))
    assert all(header.get("scope") in ("row", "col") for header in page.of("th"))
    assert all(image["alt"] for image in page.of("img"))
    for drawing in page.of("svg"):
        assert drawing.get("aria-label") or drawing.get("aria-hidden") == "true"
    for tag, attributes in page.elements:
        if attributes.get("class", "").startswith("scroll"):  # the keyboard can scroll it
            assert (tag, attributes["role"], attributes["tabindex"]) == ("div", "region", "0")
            assert attributes["aria-label"]


def test_no_two_elements_of_different_content_share_an_id(text: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert not [name for name, count in Counter(ids).items() if count > 1]


def test_page_shows_all_there_is(pages: dict[str, str]) -> None:
    shown = pages["model"]
    assert shown.count("<figure") == 4  # the worst, and three more
    assert "Benign fine-tuning, worst first" in shown
    assert 'class="heat-5">+40.0<' in shown
    assert 'class="heat-0">\N{MINUS SIGN}20.0<' in shown
    assert "digits/protected" in shown
    assert "ab" * 32 in shown
    assert "seeds:\n- 0\n- 1\n" in shown
    assert "data:image/png;base64,iVBORw==" in pages["data"]
    assert "What protected images look like" not in shown


def test_a_short_report_leaves_out_what_it_lacks() -> None:
    view = model_view(model_report(attack("one", [curve(0.1)]), seeds=[0], not_tested=[]))
    shown = to_html(view, RUN)
    Page(shown)
    assert "Nothing that Ringfence can try was left out." in shown
    for heading in ("The next worst", "Transfer gain by kind", "Benign fine-tuning, worst"):
        assert heading not in shown


def test_numbers_are_typeset() -> None:
    shown = to_html(model_view(two_attacks()), RUN)
    assert "\N{MINUS SIGN}35.0\xa0±\xa063.5" in shown
    assert '</th><td class="number">+10.0\xa0±\xa00.0</td>' in shown
    assert "audit-model --config" in shown  # only what begins a number is a minus


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_has_contrast_and_worse_cells_stand_out_more_in_grey(is_dark: bool) -> None:
    light, dark = (TEMPLATES / "style.css").read_text().split("prefers-color-scheme: dark")
    found = re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark if is_dark else light)
    shade = {name: luminance(colour) for name, colour in found}

    def contrast(one: str, other: str) -> float:
        darker, lighter = sorted((shade[one], shade[other]))
        return (lighter + 0.05) / (darker + 0.05)

    texts = [("ink", "paper"), ("muted", "paper"), ("failed", "paper"), ("ink", "panel")]
    texts += [(line, "paper") for line in ("protected", "reference", "other")]
    texts += [(f"on-heat-{level}", f"heat-{level}") for level in range(6)]
    assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
    from_paper = [contrast(f"heat-{level}", "paper") for level in range(6)]
    assert from_paper == sorted(from_paper)


def test_templates_are_installed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = config["tool"]["setuptools"]["package-data"]["ray_jobs.reports"]
    files = [PurePath(path).relative_to(TEMPLATES.parent) for path in TEMPLATES.iterdir()]
    assert len(files) == 3
    assert all(any(file.match(pattern) for pattern in patterns) for file in files)
