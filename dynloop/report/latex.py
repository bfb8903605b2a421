r"""Tables for papers: LaTeX with booktabs, a file a table, read by \input."""

from __future__ import annotations

import re

from dynloop.report.cells import Cell, Table

_CHARACTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "\n": " ",
    "\u00d7": r"$\times$", "\u2013": "--", "\u2014": "---", "\u2264": r"$\leq$", "\u2265": r"$\geq$"}
_EXPONENT = re.compile(r"(?<![\w.])(-?\d(?:\.\d+)?)e(-?\d+)(?!\w)")
_LONG = 40  # characters from which a column is set as a paragraph


def escaped(text: str) -> str:
    """Text as LaTeX shows it, whatever a model is called; powers of ten as such."""
    parts, end = [], 0
    for found in _EXPONENT.finditer(text):
        parts += [_plain(text[end:found.start()]), rf"${found[1]}\times10^{{{found[2]}}}$"]
        end = found.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    return "".join(_CHARACTERS.get(character, character) for character in text)


def table(given: Table) -> str:
    r"""A `table` with caption and label, for \usepackage{booktabs}.

    Example:
        >>> from dynloop.report import latex
        >>> from dynloop.report.cells import Cell, Table
        >>> print(latex.table(Table("rates", "Rates", ("model", "rate"), [("a_b", Cell("1.2e-7 [0, 1] %", 1.2e-7))])))
        % \usepackage{booktabs}
        \begin{table}
        \centering
        \caption{Rates}
        \label{tab:rates}
        \begin{tabular}{lr}
        \toprule
        model & rate \\
        \midrule
        a\_b & $1.2\times10^{-7}$ [0, 1] \% \\
        \bottomrule
        \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    columns = "".join(_column([row[c] for row in given.rows]) for c in range(len(given.columns)))
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{escaped(given.caption)}}}",
             rf"\label{{tab:{given.name}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
             " & ".join(map(escaped, given.columns)) + r" \\", r"\midrule",
             *(" & ".join(map(_braced, map(escaped, row))) + r" \\" for row in given.texts),
             r"\bottomrule", r"\end{tabular}"]
    if given.note:
        lines += [r"\par\smallskip", rf"{{\footnotesize {escaped(given.note)}\par}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _braced(text: str) -> str:
    """A cell that begins with a bracket would be taken for the argument of the row before."""
    return f"{{{text}}}" if text.startswith("[") else text


def _column(cells: list[Cell]) -> str:
    if all(cell.value is not None or not cell.text for cell in cells):
        return "r"
    return r"p{0.3\linewidth}" if max(len(cell.text) for cell in cells) > _LONG else "l"
