"""What share of later attention does each span of a prompt receive, by recurrence and layer?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from dynloop.attention import attention_statistics
from dynloop.attention.spans import Span, check_spans, span_shares
from dynloop.measurement import Measurement
from dynloop.models import LoopedModel, load, recording, undisturbed
from dynloop.outcome import Outcome
from dynloop.recording.attention import AttentionLayers, _Where, attention_layers
from dynloop.recording.capture import _check_run
from dynloop.recording.prompts import encode_prompts
from dynloop.settings import check_whole

UNITS = {"n_queries": "tokens", "n_tokens": "tokens"}
_NUMBERS = ("share", "expected", "before", "after", "n_queries")


def span_attention(model: LoopedModel | nn.Module | str | Path, prompts: Sequence[Any], spans: Sequence[Any], *,
                   n_recurrences: int = 32, queries: Sequence[tuple[int, int]] | None = None,
                   each_head: bool = False, symbols: Sequence[str] = (), seed: int = 0) -> Measurement:
    r"""The share of downstream attention that each span (a step, a line) receives, in every recurrence and layer.

        share = mean over tokens t after the span of sum_{k in span} A[t, k],   A the mean over heads
        expected = mean over the same t of length / (t + 1):  uniform causal attention (length / T if not causal)
        excess = share - expected,   lift = share / expected

    With what the same tokens attend to `before` and `after` the span it adds up to 1. Shares are computed in the
    forward pass, one map at a time; none is kept.

    Args:
        model: as in `capture`; a `hooked_block` that is no map, too.
        prompts: texts or sequences of token numbers.
        spans: of each prompt, (first, stop) or (first, stop, kind), in order; `find_spans` finds them.
        n_recurrences: applications of the block.
        queries: of each prompt (first, stop): count these tokens alone as later ones, such as those of the answer. By
            default all.
        each_head: a row a head; by default the mean over heads.
        symbols: flash-attention functions, as in `attention_statistics`.
        seed: prompt i starts from seed + i, where the initial state is random.

    Returns:
        A row a prompt, recurrence (from 1), layer (the module that attends), [head,] and span, with the labels
        `model`, `prompt`, `recurrence`, `layer`, [`head`,] `span` (from 0), `kind`, `first`, `last`. `share`,
        `expected`, `excess`, `lift`, `before`, `after`, `n_queries`, `n_tokens` (of the span). `TOO_SHORT`: no counted
        token comes after the span; or the loop had ended. `NOT_FINITE`: weights are not.

    Raises:
        ValueError: spans or queries that are not there; no attention in the loop.
        RuntimeError: maps that have no place by recurrence and token (keys of other recurrences, of a cache).

    Misleads:
        Attention within recurrence r looks at the keys of recurrence r alone: what a *recurrence* receives from others
        is 0 by construction, and a loop whose recurrences share keys is refused here. What a recurrence is worth says
        `recurrence_importance`. Long spans receive more, and so do early ones: read `lift`, or `excess`. The first
        token is a sink: the span that holds it receives much whatever it says; leave that token out of the spans, or
        compare kinds without it. `expected` is of full attention, not of sliding windows. Being attended to is not
        being needed: `span_importance` measures that. Rows of one prompt are not independent: resample prompts.

    Source:
        Sums of attention over steps of a reasoning trace: Bogdan et al. 2025 (arXiv 2506.19143) for receiver heads;
        the closed-form expectation and the excess over it are ours.

    Example:
        >>> from dynloop.attention.spans import find_spans
        >>> from dynloop.recording.span_attention import span_attention
        >>> text = "import os\nimport sys\nprint(os.name)\n"
        >>> m = span_attention("nano-settles", [text], [find_spans(text, kinds={"import": "^import"})], n_recurrences=4)
        >>> m
        Measurement(span_attention of 24 orbits: 16 found, 8 too short)
        >>> bool((abs(m["share"] + m["before"] + m["after"] - 1)[m.found] < 1e-12).all())
        True
    """
    looped = load(model)
    encoded = encode_prompts(looped, prompts)
    lengths = [len(prompt) for prompt in encoded]
    own = check_spans(spans, lengths)
    check_whole("n_recurrences", n_recurrences, 1, "a whole number of at least 1 (the default is 32)")
    check_whole("seed", seed, 0, "a whole number of at least 0 (the default)")
    if not isinstance(each_head, bool):
        raise ValueError(f"each_head must be true or false; got {each_head!r}.")
    _check_run(looped, n_recurrences, 1, 0)
    counted = _queries(queries, lengths)
    layers = attention_layers(looped, encoded, n_recurrences, symbols)
    parts = [_of_prompt(looped, layers, prompt, own[i], counted[i], n_recurrences, each_head, seed + i, symbols)
             for i, prompt in enumerate(encoded)]
    heads = [(name, h) for name, n in zip(layers.names, layers.heads, strict=True)
             for h in (range(n) if each_head else (-1,))]
    found = {name: np.concatenate([part[name].ravel() for part in parts]) for name in _NUMBERS}
    with np.errstate(divide="ignore", invalid="ignore"):
        share, expected = found["share"], found["expected"]
        variables = {"share": share, "expected": expected, "excess": share - expected, "lift": share / expected,
                     "before": found["before"], "after": found["after"], "n_queries": found["n_queries"]}
    labels: dict[str, list[np.ndarray]] = {}
    for i, here in enumerate(own):
        shape = (n_recurrences, len(heads), len(here))
        grid = {"prompt": np.full(shape, i), "recurrence": 1 + np.arange(n_recurrences)[:, None, None],
                "layer": np.array([name for name, _ in heads])[:, None],
                **({"head": np.array([h for _, h in heads])[:, None]} if each_head else {}),
                "span": np.arange(len(here)), "kind": np.array([span.kind for span in here]),
                "first": np.array([span.first for span in here]), "last": np.array([span.stop - 1 for span in here])}
        for name, values in grid.items():
            labels.setdefault(name, []).append(np.broadcast_to(values, shape).ravel())
    of_row = {name: np.concatenate(values) for name, values in labels.items()}
    variables["n_tokens"] = (of_row["last"] - of_row["first"] + 1).astype(np.float64)
    unseen = ~(found["n_queries"] > 0)  # NaN where the loop had ended
    finite = np.isfinite(share) | unseen
    for values in variables.values():
        values[unseen | ~finite] = np.nan
    outcomes = [Outcome.TOO_SHORT if few else Outcome.FOUND if good else Outcome.NOT_FINITE
                for few, good in zip(unseen, finite, strict=True)]
    return Measurement("span_attention", variables, outcomes, units=UNITS,
                       settings={"n_recurrences": n_recurrences, "each_head": each_head, "seed": seed,
                                 "queries": None if queries is None else tuple(map(tuple, queries))},
                       labels={"model": np.full(len(outcomes), looped.name), **of_row})


def _queries(given: Sequence[tuple[int, int]] | None, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Which tokens of every prompt count."""
    if given is None:
        return [torch.ones(n, dtype=torch.bool) for n in lengths]
    return [(torch.arange(n) >= own[0].first) & (torch.arange(n) < own[0].stop)
            for n, own in zip(lengths, check_ranges("queries", given, lengths), strict=True)]


def check_ranges(name: str, given: Any, lengths: Sequence[int]) -> list[list[Span]]:
    """One (first, stop) a prompt, each as a list of one span.

    Raises:
        ValueError: not one a prompt, or not there.
    """
    try:
        return check_spans([[tuple(own)] for own in given], lengths)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be (first, stop) for each of {len(lengths)} prompts; got {given!r}.") from error


def _of_prompt(looped: LoopedModel, layers: AttentionLayers, prompt: list[int], spans: list[Span],
               queries: torch.Tensor, n_recurrences: int, each_head: bool, seed: int,
               symbols: Sequence[str]) -> dict[str, np.ndarray]:
    """Numbers (recurrences, layers and heads, spans) of one prompt; NaN where the loop had ended."""
    n_rows = sum(layers.heads) if each_head else len(layers.names)
    rows = layers.rows if each_head else [slice(i, i + 1) for i in range(n_rows)]
    found = {name: np.full((n_recurrences, n_rows, len(spans)), np.nan) for name in _NUMBERS}
    n_positions = len(prompt) + looped.prefix
    taken, due = [0] * len(layers.names), []
    with undisturbed(looped.module):
        torch.manual_seed(seed)
        tokens = torch.tensor([prompt], device=looped.device)
        start = looped.initial_state(looped.embed(tokens), seeds=[seed]) if looped.is_map else None
        with recording(looped, lambda *_: None) as calls:
            where = _Where(looped, calls)

            def layer(module: str, call: int) -> int | None:
                take_in()  # one map in memory, not all
                place = where(module)
                number, ended = (-1, 0) if place is None else layers.places.get(place[1], (-1, 0))
                if number < 0 or place is None or not 0 <= place[0] - ended < n_recurrences:
                    return None
                due.append(place[0] - ended)
                return number

            def take_in() -> None:
                for call, recurrence in zip(seen.calls, due, strict=True):
                    number, maps = cast("int", call.layer), cast("torch.Tensor", call.map)
                    if tuple(maps.shape[2:]) != (n_positions, n_positions) or recurrence != taken[number]:
                        raise RuntimeError(f"{layers.names[number]} of {looped.name} attended with {maps.shape[2]} "
                                           f"queries and {maps.shape[3]} keys for recurrence {recurrence + 1}, where "
                                           f"{n_positions} and {n_positions} of recurrence {taken[number] + 1} were "
                                           "due: its maps have no place by recurrence and token (keys of other "
                                           "recurrences, a cache).")
                    taken[number] += 1
                    own = maps[0] if each_head else maps[0].double().mean(0, keepdim=True)
                    numbers = span_shares(own, spans, queries=queries, prefix=looped.prefix, causal=looped.causal)
                    for name in _NUMBERS:
                        found[name][recurrence, rows[number]] = numbers[name].cpu().numpy()
                seen.calls.clear()
                due.clear()

            dtype = torch.float64 if looped.compute_dtype == torch.float64 else torch.float32
            with attention_statistics(looped.module, layer=layer, symbols=symbols, distance=False, keep_maps=True,
                                      dtype=dtype, continues=looped.forwards == "recurrences") as seen:
                looped.logits(tokens, n_recurrences, start)
            take_in()
    if any(n != calls.recurrences[0] for n in taken):
        raise RuntimeError(f"the layers of {looped.name} attended {taken} times in {calls.recurrences[0]} recurrences: "
                           "their maps have no place by recurrence.")
    return found
