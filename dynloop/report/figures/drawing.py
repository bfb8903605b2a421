"""A figure with its words, rendered to bytes that are the same every time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import re
import warnings
import weakref
from collections.abc import Iterator
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.figure import Figure

from dynloop.report.figures.style import STYLE

_NAME = re.compile(r"[A-Za-z0-9_-]+")
# of every figure that a function of this package made: caption and alternative text
_WORDS: weakref.WeakKeyDictionary[Figure, tuple[str, str]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """A figure ready for a report: SVG, PNG and PDF of the same drawing, with caption and alternative text.

    The three are rendered together when one of them is first asked for.
    """

    name: str
    caption: str
    alt: str
    figure: Figure = dataclasses.field(repr=False)

    @property
    def svg(self) -> str:
        """For a page: with title and description, ids that begin with the name."""
        return self._rendered[0]

    @property
    def png(self) -> bytes:
        """200 dots an inch."""
        return self._rendered[1]

    @property
    def pdf(self) -> bytes:
        """For papers, fonts embedded."""
        return self._rendered[2]

    @functools.cached_property
    def _rendered(self) -> tuple[str, bytes, bytes]:
        text, image, pages = io.StringIO(), io.BytesIO(), io.BytesIO()
        with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
            # a name in a script that no font here has is drawn as boxes; caption and alternative text have it whole
            warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from", category=UserWarning)
            return self._saved(text, image, pages)

    def _saved(self, text: io.StringIO, image: io.BytesIO, pages: io.BytesIO) -> tuple[str, bytes, bytes]:
        with _laid_out(self.figure):
            self.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, dpi=200)
            self.figure.savefig(image, format="png", dpi=200, metadata={"Software": None})
            self.figure.savefig(pages, format="pdf", dpi=300, metadata={"CreationDate": None, "Creator": None,
                                                                        "Title": self.name})
        return self._with_words(text.getvalue()), image.getvalue(), pages.getvalue()

    def _with_words(self, svg: str) -> str:
        name = self.name
        svg = svg[svg.index("<svg"):]
        # one page holds many figures: ids must not repeat
        svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
        opening, rest = svg.split(">", 1)
        return (f'{opening} role="img" aria-labelledby="{name}-title {name}-desc">\n <title id="{name}-title">'
                f'{escape(self.alt)}</title>\n <desc id="{name}-desc">{escape(self.caption)}</desc>{rest}')


def described(figure: Figure, *, caption: str, alt: str) -> Figure:
    """The figure, with its caption and alternative text kept beside it for `caption_of`, `alt_of` and `draw`."""
    _WORDS[figure] = caption, alt
    return figure


def _words(figure: Figure) -> tuple[str, str]:
    if figure not in _WORDS:
        raise ValueError("this figure was not made by a function of dynloop.report.figures and has no words of its "
                         "own. Pass caption= and alt= to draw.")
    return _WORDS[figure]


def caption_of(figure: Figure) -> str:
    """What a figure of this package shows, in sentences: what was counted, over how many steps, with what settings.

    Raises:
        ValueError: a figure of somebody else.
    """
    return _words(figure)[0]


def alt_of(figure: Figure) -> str:
    """What a reader who cannot see a figure of this package should be told.

    Raises:
        ValueError: a figure of somebody else.
    """
    return _words(figure)[1]


@contextlib.contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay the figure out once for all formats, which takes as long as to draw it; its layout engine comes back."""
    engine = figure.get_layout_engine()
    if engine is None:
        yield
        return
    engine.execute(figure)
    figure.set_layout_engine("none")
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def draw(name: str, figure: Figure, *, caption: str | None = None, alt: str | None = None) -> Drawing:
    """A figure to be rendered; the same figure gives the same bytes.

    Args:
        name: of the files, and the beginning of all ids within the SVG: letters, digits, "-" and "_". It must be
            another one for every figure of a page.
        figure: from a function of this package, or any other with `caption` and `alt`.
        caption: what it shows; by default its own.
        alt: the same for readers who cannot see it; by default its own.

    Raises:
        ValueError: another name, or a figure without words.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must consist of letters, digits, - and _; got {name!r}. It names files and ids.")
    caption = caption_of(figure) if caption is None else caption
    alt = alt_of(figure) if alt is None else alt
    return Drawing(name, caption, alt, figure)
