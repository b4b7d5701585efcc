"""Looks at every built page in headless Chromium, at a desktop's and a phone's width, and follows every link.

Build the pages first (`sphinx-build docs docs/_build/html`). Without Chromium the tests that need it are skipped.
"""

import inspect
import re
import shutil
from collections import deque
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

import jaxnorm
import jaxnorm.check

HTML = Path(__file__).parent / "_build" / "html"
PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
WIDTHS = {"desktop": 1280, "phone": 390}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",  # which root may not use
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # the browser's own calls home: these three
    "--disable-component-update",
    "--disable-sync",
]

# What is wrong with the page as it is shown: a list of sentences.
LOOK = r"""async () => {
  const wrong = []
  await document.fonts.ready
  const root = document.documentElement
  if (root.scrollWidth > window.innerWidth) {
    const wide = [...document.querySelectorAll('article *')].filter(
      e => e.getBoundingClientRect().right > window.innerWidth + 1)
    wrong.push(`the page is ${root.scrollWidth} px wide: ${wide.slice(0, 3).map(e => e.outerHTML.slice(0, 120))}`)
  }
  for (const math of document.querySelectorAll('math')) {
    const box = math.getBoundingClientRect()
    if (!box.width || !box.height) wrong.push(`mathematics without size: ${math.textContent}`)
  }
  for (const error of document.querySelectorAll('.math-error, merror, .system-message, .problematic')) {
    wrong.push(`an error is shown: ${error.textContent}`)
  }
  const faces = [...document.fonts].filter(f => f.family.includes('STIX'))
  const hasTypeface = faces.some(f => f.status === 'loaded')
  if (document.querySelector('math') && !hasTypeface) wrong.push('no typeface for mathematics')
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const text = texts.currentNode
    if (text.parentElement.closest('pre, code, script, style, noscript')) continue
    const raw = text.data.match(/.{0,20}(\$|\\[([]|\\[a-zA-Z]+\b).{0,40}/)
    if (raw) wrong.push(`mathematics as text: ${raw[0]}`)
  }
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) wrong.push(`an image that is not shown: ${image.src}`)
    if (!image.alt) wrong.push(`an image without a text: ${image.src}`)
  }
  return wrong
}"""


class Document(HTMLParser):
    """A page's ids, what it refers to and needs, and the links of its text (not of the menus around it)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[str] = []
        self.resources: list[str] = []  # what the page needs in order to be shown
        self.links: list[str] = []
        self._in_article = False
        self.feed((HTML / page).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what the tag names and where it leads."""
        values = {name: value or "" for name, value in attrs}
        self._in_article |= tag == "article"
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if name in values:
                self.references.append(values[name])
                if tag != "a":
                    self.resources.append(values[name])
                elif self._in_article:
                    self.links.append(values[name])

    def handle_endtag(self, tag: str) -> None:
        """Notes the end of the text."""
        self._in_article &= tag != "article"


@pytest.fixture(scope="session")
def documents() -> dict[str, Document]:
    """Every page, parsed."""
    return {page: Document(page) for page in PAGES}


def target(page: str, reference: str) -> tuple[str, str] | None:
    """The file and the anchor that a reference leads to, or None if it leads elsewhere."""
    address, anchor = urldefrag(reference)
    if urlsplit(address).scheme or address.startswith("//"):
        return None
    path = (HTML / page).parent / unquote(urlsplit(address).path) if address else HTML / page
    path = path / "index.html" if path.is_dir() else path
    return path.resolve().relative_to(HTML.resolve()).as_posix(), unquote(anchor)


def test_there_are_pages() -> None:
    """The pages are built before they are tested."""
    assert "index.html" in PAGES, f"no pages in {HTML}: build them first"


def test_every_example_is_run() -> None:
    """Python on a page is a `testcode` block, or a notebook's cell, which the build runs; the README has a test."""
    pages = [path for path in Path(__file__).parent.rglob("*.md") if "_build" not in path.parts]
    assert pages and not [
        path.name for path in pages if re.search("^```\\{?(python|py|code(?!-cell))", path.read_text("utf-8"), re.M)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str, documents: dict[str, Document]) -> None:
    """Every internal link leads to a file and to an anchor in it; nothing but a link leads elsewhere."""
    for reference in documents[page].references:
        found = target(page, reference)
        if found is None:
            needed = reference in documents[page].resources and not reference.startswith("data:")
            assert not needed, f"{page} needs {reference}"
            continue
        file, anchor = found
        assert (HTML / file).exists(), f"{page} refers to {reference}, which is not there"
        if anchor and file in documents:
            assert anchor in documents[file].ids, f"{page} refers to {reference}, and {file} has no such anchor"


def public_names() -> list[str]:
    """Every public function and class."""
    names = [f"jaxnorm.{name}" for name, value in vars(jaxnorm).items() if name[0] != "_" and callable(value)]
    checks = [name for name in jaxnorm.check.__all__ if inspect.isfunction(getattr(jaxnorm.check, name))]
    return names + [f"jaxnorm.check.{name}" for name in checks]


@pytest.mark.parametrize("name", public_names())
def test_explained_within_two_clicks(name: str, documents: dict[str, Document]) -> None:
    """A derivation or a how-to that links to the function's entry is at most two clicks from the first page."""
    clicks, queue = {"index.html": 0}, deque(["index.html"])
    while queue:
        page = queue.popleft()
        for file, _ in filter(None, (target(page, link) for link in documents[page].links)):
            if file in documents and file not in clicks:
                clicks[file] = clicks[page] + 1
                queue.append(file)
    explains = [
        page
        for page, document in documents.items()
        if page.startswith(("derivations/", "howto/"))
        and any(link.endswith(f"#{name}") for link in document.links)
        and clicks.get(page, 9) <= 2
    ]
    assert explains, f"no derivation or how-to page within two clicks links to {name}"


@pytest.fixture(scope="session")
def tabs() -> Iterator[dict[str, object]]:
    """A tab of the browser for each width."""
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield {name: browser.new_page(viewport={"width": w, "height": 900}) for name, w in WIDTHS.items()}
        browser.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_page_as_shown(page: str, width: str, tabs: dict) -> None:
    """No console error, no remote request, no mathematics as text, no image missing, nothing wider than the screen."""
    tab, wrong = tabs[width], []
    listeners = {
        "console": lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None,
        "pageerror": lambda error: wrong.append(f"script: {error}"),
        "requestfailed": lambda request: wrong.append(f"not loaded: {request.url}"),
        "request": lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(f"remote: {r.url}"),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    try:
        tab.goto((HTML / page).resolve().as_uri(), wait_until="load")
        wrong += tab.evaluate(LOOK)
    finally:
        for event, listener in listeners.items():
            tab.remove_listener(event, listener)
    assert not wrong, "\n".join(wrong)
