"""Spans of tokens, such as the steps of a chain of thought or the lines of a program, and what attention they get."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, NamedTuple

import torch

# What a step of a written chain of thought is taken for, in this order; the words are those that the published lists
# have in common. A step that mentions several belongs to the first.
STEP_KINDS: Mapping[str, str] = {
    "backtracking": r"\b(wait|hold on|hmm+|actually|alternatively|on second thought|scratch that|start(ing)? over|"
                    r"go(ing)? back|let me (re\w+|try (again|another|a different))|another (way|approach)|"
                    r"(made|was) an? (mistake|error)|that('s| is) (wrong|not (right|correct)))\b|^\s*no,",
    "verification": r"\b((double|re)?-?check(s|ed|ing)?|verif(y|ies|ied|ying|ication)|confirm(s|ed|ing)?|make sure|"
                    r"sanity|consistent with|substitut\w+ back|plug(s|ged|ging)? (it |this |that )?(back|in))\b",
    "answer": r"\b((final|the) answer|therefore|in conclusion|to conclude)\b|\\boxed",
}


class Span(NamedTuple):
    """Tokens `first` to `stop` - 1 of a prompt, counted from 0, and what kind of step they are."""

    first: int
    stop: int
    kind: str = ""


def find_spans(pieces: str | bytes | Sequence[str], *, separator: str = r"\n+",
               kinds: Mapping[str, str] | None = None, other: str = "other") -> list[Span]:
    """Cut a prompt into spans that end with a separator, and say what kind each is.

    A span ends with the token that holds the end of a separator (a line break belongs to the line that it ends); the
    last one ends with the prompt. Every token is in exactly one span.

    Args:
        pieces: the text of each token, in order: `[tokenizer.decode([t]) for t in tokens]`. In a text every character
            is a token, in bytes (of UTF-8) every byte: a model that reads bytes needs `text.encode()`.
        separator: regular expression of what ends a span, in the joined text.
        kinds: name -> regular expression; a span is of the first kind whose expression is found in its text (less line
            breaks at its ends), upper and lower case alike, `^` and `$` at every line. By default `STEP_KINDS`:
            "backtracking" (wait, actually, alternatively, hmm, let me try again, ...), "verification" (check, verify,
            confirm, make sure, plug back in, ...), "answer" (therefore, the answer, \\boxed).
        other: the kind of what no expression matches.

    Returns:
        The spans, in order.

    Raises:
        ValueError: no tokens; an expression that is none, or a separator that is found in an empty text.

    Misleads:
        Words are no proof: "actually" opens a plain statement as often as a correction. Look at what each kind holds
        before believing its mean. Line breaks within a formula or a program cut steps in two.

    Source:
        Steps by separators and kinds by key words are common practice in studies of reasoning traces (Bogdan et al.
        2025, arXiv 2506.19143, cut at sentences and let a model name the kinds); the lists are ours.

    Example:
        >>> from dynloop.attention.spans import find_spans
        >>> find_spans("2 + 3 = 6\\nWait, 5\\nLet me check: 5 - 3 = 2\\n")
        [Span(first=0, stop=10, kind='other'), Span(first=10, stop=18, kind='backtracking'),
         Span(first=18, stop=42, kind='verification')]
    """
    texts = _characters(pieces) if isinstance(pieces, bytes) else list(pieces)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"pieces must be the texts of a prompt's tokens, at least one; got {pieces!r}.")
    ends = _expression("separator", separator)
    rules = {name: _expression(f"kinds[{name!r}]", rule) for name, rule in (STEP_KINDS if kinds is None else
                                                                            kinds).items()}
    whole = "".join(texts)
    if ends.search(""):
        raise ValueError(f"separator={separator!r} is found in an empty text, and so everywhere. Use an expression "
                         r"such as '\n+'.")
    offsets, at = [], 0  # where each token ends in the text
    for text in texts:
        at += len(text)
        offsets.append(at)
    stops, token = [], 0
    for match in ends.finditer(whole):
        while offsets[token] < match.end():
            token += 1
        stops.append(token + 1)
    found, first = [], 0
    for stop in sorted({*stops, len(texts)}):
        text = "".join(texts[first:stop]).strip("\r\n")  # so that ^\s*$ means an empty line
        found.append(Span(first, stop, next((name for name, rule in rules.items() if rule.search(text)), other)))
        first = stop
    return found


def _characters(given: bytes) -> list[str]:
    """The text of each byte: a character stands at the last of its bytes."""
    found = []
    for character in given.decode(errors="surrogateescape"):
        found += [""] * (len(character.encode(errors="surrogateescape")) - 1) + [character]
    return found


def _expression(name: str, given: Any) -> re.Pattern[str]:
    try:
        return re.compile(given, re.IGNORECASE | re.MULTILINE)
    except (re.error, TypeError) as error:
        raise ValueError(f"{name} must be a regular expression; got {given!r}: {error}.") from None


def check_spans(spans: Any, lengths: Sequence[int]) -> list[list[Span]]:
    """The spans of every prompt.

    Raises:
        ValueError: not one list a prompt; spans that are empty, overlap, or do not exist.
    """
    if isinstance(spans, str) or not isinstance(spans, Sequence) or len(spans) != len(lengths):
        raise ValueError(f"spans must be a list of spans for each of {len(lengths)} prompts; got "
                         f"{len(spans) if hasattr(spans, '__len__') else type(spans).__name__}. One prompt? Pass "
                         "[spans].")
    found = []
    for number, (own, length) in enumerate(zip(spans, lengths, strict=True)):
        try:
            here = [Span(index(span[0]), index(span[1]), *span[2:]) for span in own]
            last = 0
            for span in here:
                if not (isinstance(span.kind, str) and last <= span.first < span.stop <= length):
                    raise ValueError
                last = span.stop
        except (TypeError, ValueError):
            here = []
        if not here:
            raise ValueError(f"the spans of prompt {number} must be (first, stop) or (first, stop, kind), at least one "
                             f"of them, in order, apart from each other, between 0 and {length}; got {list(own)!r}.")
        found.append(here)
    return found


def span_shares(maps: torch.Tensor, spans: Sequence[Span], *, queries: torch.Tensor, prefix: int = 0,
                causal: bool = True) -> dict[str, torch.Tensor]:
    """Of attention maps: what share of each span's later queries goes to it, before it and after it.

    Args:
        maps: (n, T, T), rows that add up to 1, or to 0 where a query attends to nothing.
        spans: of tokens, after `prefix` positions.
        queries: (T - prefix,) bool, tokens that count.
        prefix: positions before the first token.
        causal: whether query t sees keys up to t only; of `expected`.

    Returns:
        `share`, `before`, `after`, `expected` (of uniform attention) and `n_queries`, each (n, spans); NaN where no
        query counts.
    """
    weights = maps.double()
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(total == 0, 0.0, weights / total)
    device, n_positions = maps.device, maps.shape[-1]
    first, stop = torch.tensor([span[:2] for span in spans], device=device).T + prefix
    keys = torch.arange(n_positions, device=device)[:, None]
    below, beyond = keys < first, keys >= stop  # (positions, spans)
    counted = torch.nn.functional.pad(queries.to(device), (prefix, 0))
    later = (counted[:, None] & beyond)[None] & (total != 0)  # (n, queries, spans); a NaN stays
    n = later.sum(1).double()
    seen = (keys + 1 if causal else torch.full_like(keys, n_positions)).double()
    parts = {"share": weights @ (~below & ~beyond).double(), "before": weights @ below.double(),
             "after": weights @ beyond.double(), "expected": ((stop - first) / seen).expand(later.shape)}
    found = {name: torch.where(later, part, 0.0).sum(1) / n for name, part in parts.items()}
    return {**found, "n_queries": n}
