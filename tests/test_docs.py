"""The site: every public name has a page, every page is listed, every link within the repository leads somewhere."""

import re
from pathlib import Path

import pytest

import dynloop

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "generated"} & set(p.parts))


def test_every_public_name_is_in_the_reference():
    listed = set(re.findall(r"^   dynloop\.(\w+)$", (DOCS / "reference" / "index.md").read_text(), re.M))
    assert listed == set(dynloop.__all__) - {"__version__"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_every_page_is_in_a_table_of_contents():
    listed = {"index"}
    for page in PAGES:
        for contents in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.S):
            for entry in re.findall(r"^(?!:)(?:.*<)?([\w/]+)>?$", contents, re.M):
                listed.add((page.parent / entry).relative_to(DOCS).as_posix())
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} == listed
