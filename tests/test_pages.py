"""The page in a browser: nothing is cut off, nothing fails, nothing is fetched, and an accessibility checker agrees."""

import itertools

import numpy as np
import pytest
import torch
from browser import accessibility, cut_off, one_browser, open_page  # noqa: F401

from dynloop import Trajectories
from dynloop.report import build_report

WIDTHS = (1280, 390)
pytestmark = pytest.mark.usefixtures("one_browser")


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def page(tmp_path_factory, few_planted):
    """A report with everything on it: three runs, one of them a control, a long name, comparisons."""
    rng = np.random.default_rng(0)

    def run(name, rate):
        rates = rate + 0.05 * rng.uniform(-1, 1, (48, 1, 1))
        states = rng.normal(size=(48, 1, 12)) + rates ** np.arange(40)[:, None] * rng.normal(size=(48, 1, 12))
        return Trajectories(states.astype("float32"), labels={
            "prompt": np.arange(48) // 6, "token": np.arange(48) % 3, "layer": np.arange(48) // 3 % 2 + 1,
            "model": name})

    with few_planted():
        report = build_report([run("a-model-with-a-rather-long-name", 0.7),
                               run("a-model-with-a-rather-long-name-untrained", 0.9), run("third", 0.8)],
                              n_resamples=100, comparing=True)
    return report.save(tmp_path_factory.mktemp("report") / "r", formats=["html"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_shows_everything_and_asks_for_nothing(page, width, dark):
    with open_page(page, width, 900, dark=dark) as (shown, errors, requests):
        assert shown.locator("h1").inner_text() == "How the loop settles"
        assert shown.locator("figure svg").count() == 17
        assert cut_off(shown) == []
        assert shown.evaluate("document.body.scrollWidth <= document.documentElement.clientWidth")
        outside = shown.evaluate("""() => {
          const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walk.nextNode()) {
            const node = walk.currentNode, parent = node.parentElement;
            if (!node.data.trim() || parent.closest('.scroll, .skip, svg, style')) continue;
            const range = document.createRange();
            range.selectNodeContents(node);
            for (const box of range.getClientRects())
              if (box.left < -1 || box.right > window.innerWidth + 1) found.push(node.data.slice(0, 60));
          }
          return found;
        }""")
        assert outside == []
        assert (errors, requests) == ([], [])


@pytest.mark.parametrize("width", WIDTHS)
def test_wide_tables_scroll_in_a_region_that_the_keyboard_reaches(page, width):
    with open_page(page, width, 900) as (shown, _, _):
        wide = shown.evaluate("""() => [...document.querySelectorAll('.scroll')].map(region => [
          region.scrollWidth > region.clientWidth, region.tabIndex, region.getAttribute('role'),
          document.getElementById(region.getAttribute('aria-labelledby')).textContent.length > 5])""")
        assert len(wide) > 10
        assert any(scrolls for scrolls, *_ in wide) or width > 390
        assert all(rest == [0, "region", True] for _, *rest in wide)
        shown.keyboard.press("Tab")  # the first thing that the keyboard meets leads past the rest
        assert shown.evaluate("document.activeElement.className") == "skip"
        box = shown.evaluate("(r => [r.top, r.left])(document.activeElement.getBoundingClientRect())")
        assert min(box) >= 0
        shown.keyboard.press("Enter")
        assert shown.evaluate("document.activeElement.id") == "main"


def test_headings_come_in_order_and_every_link_meets_its_target(page):
    with open_page(page, 1280, 900) as (shown, _, _):
        levels = shown.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        assert shown.evaluate("[...document.querySelectorAll('a')].every(a => document.querySelector("
                              "'#' + CSS.escape(a.getAttribute('href').slice(1))))")
        assert shown.evaluate("[...document.querySelectorAll('th')].every(th => ['col', 'row'].includes(th.scope))")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_an_accessibility_checker_finds_nothing_serious(page, width, dark):
    assert accessibility(page, width, 900, dark=dark) == []


def test_on_paper_no_table_leaves_the_page(page):
    with open_page(page, 700, 900) as (shown, _, _):  # A4 less its margins is some 690 pixels wide
        shown.emulate_media(media="print")
        wide = shown.evaluate("[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > "
                              "window.innerWidth).map(t => t.caption.textContent)")
        assert wide == []
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
