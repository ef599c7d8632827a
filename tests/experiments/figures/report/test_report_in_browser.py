"""The report in a headless Chromium: no error, no network, pictures, toggles, schemes, phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.base.environment import REPOSITORY
from experiments.figures.report.page import build
from tests.experiments.figures.report.report_cases import write_results

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH; install one or set CHROMIUM to its path"
)

Opened = tuple[sync_api.Page, list[str]]

SHOWN = "[...document.querySelector('.plot').data].filter(t => t.visible === true).length"
DRAWN = "document.querySelector('.plot')?.querySelectorAll('.scatterlayer .trace').length > 0"


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(write_results(tmp_path_factory.mktemp("browser")))


@pytest.fixture
def opened(browser: sync_api.Browser, report: Path) -> Iterator[Opened]:
    """The page on a desktop in a light scheme, and what went wrong so far."""
    yield from visit(browser, report, width=1200)


def visit(
    browser: sync_api.Browser, path: Path, *, width: int, scheme: str = "light"
) -> Iterator[Opened]:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda line: problems.append(line.text) if line.type in ("error", "warning") else None,
    )
    page.on(
        "request",
        lambda asked: problems.append(asked.url) if asked.url.startswith("http") else None,
    )
    page.goto(path.as_uri())
    page.wait_for_load_state("load")
    yield page, problems
    context.close()


def test_no_error_no_network_and_every_picture(opened):
    page, problems = opened
    for section in page.query_selector_all("section"):
        section.scroll_into_view_if_needed()
    page.wait_for_function(DRAWN)
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 2
    assert min(widths) > 800
    assert problems == []
    # What captions say is text, whatever they say.
    assert page.evaluate("window.hacked === undefined")
    assert "</script>" in page.inner_text("#figure-8-paper .caption")
    assert page.inner_text("#table-3 .caption") == "A note."
    for name in page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash)"):
        assert page.query_selector(name) is not None


def test_series_are_switched_off_and_on_and_choices_redraw(opened):
    page, problems = opened
    page.wait_for_function(DRAWN)
    assert page.evaluate(SHOWN) == 9
    adam = page.get_by_role("button", name="Adam")
    adam.click()
    assert adam.get_attribute("aria-pressed") == "false"
    assert page.evaluate(SHOWN) == 6
    page.get_by_role("button", name="SNOpt").click()
    assert page.evaluate(SHOWN) == 3
    page.select_option("select >> nth=0", "japanese_vowels")
    assert page.evaluate(SHOWN) == 3
    page.get_by_role("button", name="Adam").click()
    assert page.evaluate(SHOWN) == 6
    page.select_option("select >> nth=1", "val_metric")
    page.select_option("select >> nth=2", "step")
    layout = "document.querySelector('.plot').layout"
    assert page.evaluate(f"{layout}.xaxis.title.text") == "Training steps"
    assert page.evaluate(f"{layout}.yaxis.title.text").startswith("Validation metric")
    assert page.evaluate(f"{layout}.yaxis.type") == "log"
    page.uncheck("input[type=checkbox]")
    assert page.evaluate(f"{layout}.yaxis.type") == "linear"
    assert problems == []


def background(page: sync_api.Page) -> str:
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


def test_colour_schemes(browser, report):
    for page, problems in visit(browser, report, width=1200, scheme="dark"):
        page.wait_for_function(DRAWN)
        dark = background(page)
        assert dark == "rgb(21, 23, 26)"
        font = "document.querySelector('.plot').layout.font.color"
        assert page.evaluate(font) == "#e6e8eb"
        page.click("#theme")
        assert page.inner_text("#theme") == "Theme: light"
        assert background(page) == "rgb(255, 255, 255)"
        assert page.evaluate(font) == "#1c1e21"
        page.click("#theme")
        assert background(page) == dark
        page.emulate_media(color_scheme="light")
        assert background(page) == dark
        page.click("#theme")
        assert background(page) == "rgb(255, 255, 255)"
        assert problems == []


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_needs_no_sideways_scrolling(browser, report, width):
    for page, problems in visit(browser, report, width=width):
        page.wait_for_function(DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        heights = page.evaluate(
            "[...document.querySelectorAll('button, select')].map(e => e.offsetHeight)"
        )
        assert min(heights) >= 36
        assert problems == []


def test_the_committed_results(browser, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(REPOSITORY / "results", results)
    for page, problems in visit(browser, build(results), width=390):
        page.wait_for_function(DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert problems == []
