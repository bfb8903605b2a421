"""A page on which one prompt can be explored: every token and recurrence, and the orbit of each token."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynloop.analyzers import (
    contraction_rate,
    distance_to_limit,
    limit_regime,
    recurrence_quantification,
    successive_distance,
)
from dynloop.measuring import measure
from dynloop.report.figures.pca_path import principal_plane
from dynloop.report.figures.recurrence_plot import state_distances
from dynloop.settings import check_number
from dynloop.store import Store
from dynloop.trajectories import Trajectories
from dynloop.version import __version__

MOST_TOKENS = 256
MOST_STEPS = 256
_PLOT_BYTES = 3 * 2**20  # of all recurrence plots together
_HERE = Path(__file__).parent
# a distance d is kept as floor(_STEPS log10(d / threshold)) + _AT: below _AT it is a recurrence, exactly
_STEPS, _AT, _UNKNOWN = 32, 160, 255
_SPECIAL = {" ": "\u2423", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}
NAME = "explorer.html"


def explorer(source: Store | Trajectories, *, prompt: Any, out: str | Path, layer: Any = None,
             texts: Sequence[str] | None = None, threshold: float = 0.1) -> Path:
    """Write an interactive page for one prompt: a map of tokens by recurrences, and the orbit of the chosen token.

    One HTML file that needs nothing else, neither network nor server. A click or the arrow keys choose a token and a
    recurrence; beside the map stand the token's orbit in its two leading principal components, its distance from the
    last state and its steps, its recurrence plot, and what the analyzers say of it.

    Args:
        source: a store, or trajectories with the labels `prompt` and `token`.
        prompt: the value of the label `prompt`.
        out: the file (a name in .html), or a folder, where it is called explorer.html.
        layer: the value of the label `layer`; by default the last one.
        texts: of the tokens of the prompt, by position; by default the label `text`, or what the store knows.
        threshold: of the recurrence plot, as a share of the orbit's rms distance between its states.

    Returns:
        The file.

    Raises:
        TypeError: neither a store nor trajectories.
        ValueError: no such prompt or layer, several orbits a token, or a threshold that is none.
        FileExistsError: `out` is a file of another kind.

    Misleads:
        A plane is fitted to each orbit alone: two tokens' planes are not the same, and a random walk draws an arc. One
        prompt is an example and no sample: whatever is to be said of all prompts belongs in a report.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.report.explorer import explorer
        >>> states = 0.8 ** np.arange(32)[:, None] * np.random.default_rng(0).normal(size=(3, 1, 4))
        >>> orbits = Trajectories(states, labels={"prompt": 0, "token": np.arange(3)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     explorer(orbits, prompt=0, out=folder, texts=["a", "b", "c"]).name
        'explorer.html'
    """
    if not isinstance(source, Store | Trajectories):
        raise TypeError(f"explorer needs a Store or Trajectories; got {type(source).__name__}. "
                        "Open a store with open_store(folder).")
    check_number("threshold", threshold, lambda v: 0 < v < math.inf, "a positive number (the default is 0.1)")
    path = Path(out)
    if path.suffix != ".html":
        if path.is_file():
            raise FileExistsError(f"{path} is a file that does not end in .html. Name a folder, or a page.")
        path = path / NAME
    orbits = _orbits_of(source, prompt, layer)
    page = _page(orbits, _data(orbits, _texts_of(source, orbits, texts), float(threshold)))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(page.encode())
    os.replace(temporary, path)
    return path


def _orbits_of(source: Store | Trajectories, prompt: Any, layer: Any) -> Trajectories:
    """One orbit a token, in the order of the tokens."""
    labels = source.labels
    for name in ("prompt", "token"):
        if name not in labels:
            raise ValueError(f"the explorer shows the tokens of one prompt: it needs the labels prompt and token; "
                             f"there are {', '.join(labels) or 'none'}.")
    if prompt not in labels["prompt"]:
        raise ValueError(f"no prompt {prompt!r}; there are {_some(labels['prompt'])}.")
    wanted: dict[str, Any] = {"prompt": prompt}
    own = labels["prompt"] == prompt
    if layer is not None and ("layer" not in labels or layer not in labels["layer"][own]):
        raise ValueError(f"no layer {layer!r} of prompt {prompt!r}; there are "
                         + (f"{_some(labels['layer'][own])}." if "layer" in labels else "no layers."))
    for name in ("layer", "start"):  # the last layer is the loop state, the first start the one to begin with
        if name in labels:
            there = np.unique(labels[name][own])
            wanted[name] = there[-1 if name == "layer" else 0] if name == "start" or layer is None else layer
            own &= labels[name] == wanted[name]
    orbits = source.trajectories(**wanted) if isinstance(source, Store) else source.select(**wanted)
    tokens = orbits.labels["token"]
    if len(np.unique(tokens)) < len(tokens):
        differ = [name for name, values in orbits.labels.items() if name not in wanted and name != "token"
                  and len(np.unique(values)) > 1]
        raise ValueError(f"several orbits of prompt {prompt!r} belong to one token; they differ in "
                         f"{', '.join(differ) or 'no label'}. Pass trajectories with one orbit a token: "
                         "source.select(...).")
    return orbits[np.argsort(tokens, kind="stable")]


def _some(values: np.ndarray) -> str:
    distinct = np.unique(values).tolist()
    return ", ".join(map(str, distinct[:8])) + (f", ... ({len(distinct)})" if len(distinct) > 8 else "")


def _texts_of(source: Store | Trajectories, orbits: Trajectories, given: Sequence[str] | None) -> list[str]:
    """Text of every token; "" where nobody knows it."""
    positions = orbits.labels["token"].tolist()
    if given is not None:
        if any(not 0 <= int(p) < len(given) for p in positions):
            raise ValueError(f"texts must hold one text for each position up to {max(positions)}; got {len(given)}.")
        return [str(given[int(p)]) for p in positions]
    if "text" in orbits.labels:
        return [str(text) for text in orbits.labels["text"]]
    if not isinstance(source, Store):
        return [""] * len(positions)
    family = source.header.get("model", {}).get("family") if isinstance(source.header.get("model"), dict) else None
    wanted = orbits.labels["prompt"][0]
    for batch in source.inputs():
        if "tokens" in batch and wanted in batch.get("prompts", ()):
            row = batch["tokens"][list(batch["prompts"]).index(wanted)].tolist()
            numbers = [row[int(p)] if 0 <= int(p) < len(row) else None for p in positions]
            if family == "nano":  # whose tokens are bytes
                return ["" if n is None else bytes([n]).decode("latin-1") for n in numbers]
            return ["" if n is None else f"#{n}" for n in numbers]
    return [""] * len(positions)


def _kept(n: int, most: int) -> np.ndarray:
    """At most `most` of n, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _data(orbits: Trajectories, texts: list[str], threshold: float) -> dict[str, Any]:
    """Everything that the page shows, ready for JSON."""
    tokens = _kept(orbits.n_orbits, MOST_TOKENS)
    thinned = []
    if len(tokens) < orbits.n_orbits:
        thinned.append(f"{len(tokens)} of {orbits.n_orbits} tokens are shown, evenly spaced")
        orbits, texts = orbits[tokens], [texts[t] for t in tokens]
    n, n_steps = orbits.n_orbits, orbits.n_steps
    steps = _kept(n_steps, MOST_STEPS)
    if len(steps) < n_steps:
        thinned.append(f"{len(steps)} of {n_steps} recurrences are shown, evenly spaced; steps are from one recurrence "
                       "to the next all the same")
    side = min(len(steps), int(math.sqrt(2 * _PLOT_BYTES / n)))
    corners = steps[_kept(len(steps), side)]
    if len(corners) < n_steps:
        thinned.append(f"recurrence plots have {len(corners)} recurrences")
    distance, step, rate, regime, recurrence = measure(orbits, [
        functools.partial(distance_to_limit, metric="relative"),
        functools.partial(successive_distance, metric="relative"), contraction_rate, limit_regime,
        functools.partial(recurrence_quantification, threshold=threshold)])
    into = np.full((n, n_steps), np.nan)
    into[:, 1:] = step.values
    paths = np.zeros((n, len(steps), 2), dtype=np.uint16)
    plots = np.full((n, len(corners) * (len(corners) + 1) // 2), _UNKNOWN, dtype=np.uint8)
    rows = []
    low, high = np.triu_indices(len(corners))
    for o in range(n):
        length = int(orbits.lengths[o])
        x = orbits.states[o, :length].double().cpu().numpy()
        shown, kept = steps[steps < length], corners[corners < length]
        plane = principal_plane(x)
        if plane is not None and len(shown):
            own = plane[0][shown]
            least, reach = own.min(0), np.maximum(np.ptp(own, axis=0), np.finfo(float).tiny)
            paths[o, :len(shown)] = np.round((own - least) / reach * 65535)
            window = [float(v) for pair in zip(least, least + reach, strict=True) for v in pair]
        radius = float(recurrence["threshold"][o])
        if len(kept) and np.isfinite(radius) and radius > 0:
            d = np.full((len(corners), len(corners)), np.nan)
            d[:len(kept), :len(kept)] = state_distances(x[kept]) if len(kept) > 1 else 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                code = np.clip(np.floor(_STEPS * np.log10(d / radius)) + _AT, 0, _UNKNOWN - 1)
            code = np.where(d < radius, np.minimum(code, _AT - 1), np.maximum(code, _AT))  # exact on both sides
            plots[o] = np.where(np.isnan(d), _UNKNOWN, code)[low, high].astype(np.uint8)
        rows.append({
            "token": _plain(orbits.labels["token"][o]), "text": _shown(texts[o]), "length": length,
            "plane": None if plane is None or not len(shown) else {
                "variance": [float(v) for v in plane[1]], "window": window},
            "radius": _number(radius), "recurrence_rate": _number(recurrence["recurrence_rate"][o]),
            "facts": _facts(o, distance, rate, regime)})
    from matplotlib import colormaps

    colours = {name: _packed(np.round(255 * colormaps[name](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8))
               for name in ("cividis", "viridis")}
    with np.errstate(divide="ignore", invalid="ignore"):
        maps = {name: np.log10(np.where(values > 0, values, np.nan))[:, steps].astype("<f4")
                for name, values in (("distance", distance.values), ("step", into))}
    return {"n_steps": n_steps, "recurrences": (steps + 1).tolist(), "plot_recurrences": (corners + 1).tolist(),
            "tokens": rows, "maps": {name: _packed(values) for name, values in maps.items()},
            "paths": _packed(paths.astype("<u2")), "plots": _packed(plots), "threshold": threshold,
            "code": {"at": _AT, "unknown": _UNKNOWN, "steps": _STEPS}, "colours": colours, "thinned": thinned,
            "tolerance": float(distance.settings["tolerance"])}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _shown(text: str) -> str:
    """A token's text with its blanks made visible."""
    return "".join(_SPECIAL.get(c, c if c.isprintable() else "\ufffd") for c in text)


def _facts(o: int, distance: Any, rate: Any, regime: Any) -> list[list[str]]:
    """What the analyzers say of one orbit: names and sentences."""
    if regime.outcomes[o].value == "found":
        period = regime["period"][o]
        what = f"{regime.values[o]}{f' of period {period:g}' if np.isfinite(period) else ''}, " \
               f"confidence {regime['confidence'][o]:.3g}"
    else:
        what = regime.outcomes[o].sentence
    rest = {"found": "yes", "not converged": "no"}.get(distance.outcomes[o].value, distance.outcomes[o].sentence)
    if rate.found[o]:
        fall = f"{rate.values[o]:.3g} per recurrence [{rate['rate_low'][o]:.3g}, {rate['rate_high'][o]:.3g}], " \
               f"{100 * rate.settings['confidence_level']:g} % interval of the fit"
    else:
        fall = rate.outcomes[o].sentence
    floor = rate["relative_floor"][o]
    return [["Regime", what], ["At rest", rest], ["Contraction rate", fall],
            ["Floor of the steps", f"{floor:.3g} of the state's norm" if np.isfinite(floor) else "none was reached"]]


def _page(orbits: Trajectories, data: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    script, style = ((_HERE / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    labels = {name: _plain(values[0]) for name, values in orbits.labels.items()
              if name in ("model", "prompt", "layer", "start") and (values == values[0]).all()}
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    environment = Environment(loader=PackageLoader("dynloop.report", "."), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(NAME).render(
        labels=labels, data=text, script=script, style=style, script_hash=_hash(script), style_hash=_hash(style),
        n_tokens=len(data["tokens"]), n_steps=data["n_steps"], thinned=data["thinned"], version=__version__,
        threshold=data["threshold"], tolerance=f"{data['tolerance']:g}")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
