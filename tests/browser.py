"""A page in headless Chromium, with everything that it complained about and asked for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SERIOUS = ("serious", "critical")
# what sticks out of the page, or is cut off by a box that neither scrolls nor shows what runs over it
_CUT_OFF = """() => {
  const found = [], page = document.documentElement;
  if (page.scrollWidth > window.innerWidth) found.push(`page: ${page.scrollWidth} > ${window.innerWidth} pixels`);
  const shown = style => style.display !== 'none' && style.visibility !== 'hidden';
  const hidden = element => element.closest('.unseen') !== null;  // for screen readers alone
  const name = element => `${element.tagName.toLowerCase()}#${element.id}.${element.getAttribute('class')}`;
  for (const element of document.querySelectorAll('body *')) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!shown(style) || hidden(element) || !box.width) continue;
    if (element.closest('svg') && element.tagName !== 'svg') {
      const text = element.tagName === 'text', svg = element.closest('svg').getBoundingClientRect();
      if (text && (box.left < svg.left - 1 || box.right > svg.right + 1 || box.top < svg.top - 1 ||
                   box.bottom > svg.bottom + 1)) found.push(`${name(element)}: ${element.textContent}`);
      continue;
    }
    const clips = value => value === 'hidden' || value === 'clip';
    if ((clips(style.overflowX) && element.scrollWidth > element.clientWidth + 1) ||
        (clips(style.overflowY) && element.scrollHeight > element.clientHeight + 1)) found.push(name(element));
    const scrolls = parent => parent && (/auto|scroll/.test(getComputedStyle(parent).overflowX) ||
                                         scrolls(parent.parentElement));
    if ((box.right > window.innerWidth + 1 || box.left < -1) && !scrolls(element.parentElement))
      found.push(`${name(element)} sticks out: ${Math.round(box.left)} to ${Math.round(box.right)}`);
  }
  return found;
}"""


_kept: list[contextlib.ExitStack] = []  # what closes the browser that the tests of a file share
_browser: list[Any] = []  # it, once a test asked for it


def _launched(stack: contextlib.ExitStack) -> Any:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser on PATH: one of {', '.join(NAMES)} is needed")
    playwright = stack.enter_context(sync_playwright())
    browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
    stack.callback(browser.close)
    return browser


@pytest.fixture(scope="module")
def one_browser() -> Iterator[None]:
    """Tests of one file share a browser, each with a context of its own: to start one takes longer than most tests.

    For no longer than a file: while it runs, this process has a thread, and may not be forked.
    """
    with contextlib.ExitStack() as stack:
        _kept.append(stack)
        try:
            yield
        finally:
            _kept.clear()
            _browser.clear()


@contextlib.contextmanager
def _opened(path: Path, width: int, height: int, *, dark: bool, bypass_csp: bool) -> Iterator[tuple[Any, list, list]]:
    with contextlib.ExitStack() as own:
        browser = _browser[0] if _browser else _launched(_kept[0] if _kept else own)
        if _kept and not _browser:
            _browser.append(browser)
        context = browser.new_context(viewport={"width": width, "height": height}, bypass_csp=bypass_csp,
                                      color_scheme="dark" if dark else "light")
        own.callback(context.close)
        page = context.new_page()
        address = Path(path).resolve().as_uri()
        errors: list[str] = []
        requests: list[str] = []
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: requests.append(r.url) if r.url.split("#")[0] != address else None)
        page.goto(address)
        yield page, errors, requests


def open_page(path: Path, width: int, height: int, *, dark: bool = False) -> Any:
    """Open a file in a `with`; gives the page, its errors and warnings, and what it asked for besides itself.

    Where there is no browser on PATH the test is skipped.
    """
    return _opened(path, width, height, dark=dark, bypass_csp=False)


def cut_off(page: Any) -> list[str]:
    """Elements whose text is cut off or sticks out of the page; texts of drawings that leave their drawing."""
    return page.evaluate(_CUT_OFF)


def accessibility(path: Path, width: int, height: int, *, dark: bool = False) -> list[str]:
    """What axe-core finds that is serious or critical, each with the first element concerned."""
    pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    from axe_playwright_python.sync_playwright import Axe

    # the checker is a script of its own, which the page's policy would refuse
    with _opened(path, width, height, dark=dark, bypass_csp=True) as (page, _, _):
        return [f"{found['id']}: {found['nodes'][0]['html'][:200]}"
                for found in Axe().run(page).response["violations"] if found["impact"] in SERIOUS]
