"""Statistics of the loop's attention maps, taken in the forward passes that are recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from dynloop.attention import AttentionCall, MapDistances, attention_statistics
from dynloop.models import LoopedModel, recording, undisturbed
from dynloop.models.looped_model import parameter_identity, unwrapped
from dynloop.models.recorder import Calls
from dynloop.store import Store
from dynloop.store.shards import NAMES

PER_MAP = ("sink_score", "entropy", "maximum", "distance", "concentration")
PER_TOKEN = ("column_sum", "entropy", "maximum")
_STORED = "attention_"  # begins the names of the tensors in a store
_STORED_PER_MAP = tuple(f"{_STORED}map_{name}" for name in PER_MAP)
_STORED_PER_TOKEN = tuple(f"{_STORED}token_{name}" for name in PER_TOKEN)
_STORED_PAIRS, _STORED_NORM = f"{_STORED}pair_distance", f"{_STORED}pair_norm"
_POSITIONS, _RUN = f"{_STORED}positions", f"{_STORED}recurrences"  # of every row
_MOST_PAIRS = 2**30  # bytes of distances between maps, in a batch

_DTYPES = {name: dtype for dtype, name in NAMES.items()}

# (module, calls of points in the recurrence before it, its calls since the last of those)
Place = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class AttentionLayers:
    """The attention calls of one recurrence, in order: what `capture` records of attention.

    Attributes:
        names: the module that attends, and where it does so several times a recurrence "#1", "#2", ... after it.
        heads: of each.
        outside: modules that attend before and after the loop; of these nothing is recorded.
        places: place -> (number of the layer, how many recurrences have ended by then, less the recurrence's own
            number: 1 for what follows the last state of a recurrence).
        symbols: flash-attention functions that are seen, too.
        pairs: distances between all maps of a "layer", of "all" layers, or of none.
    """

    names: tuple[str, ...]
    heads: tuple[int, ...]
    outside: tuple[str, ...]
    places: dict[Place, tuple[int, int]]
    symbols: tuple[str, ...]
    pairs: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """For the header of a store."""
        return {"layers": list(self.names), "heads": list(self.heads), "outside": list(self.outside),
                "symbols": list(self.symbols), **({} if self.pairs is None else {"pairs": self.pairs})}

    @property
    def rows(self) -> list[slice]:
        """Where the heads of each layer lie, side by side."""
        stops = np.cumsum(self.heads).tolist()
        return [slice(stop - n, stop) for stop, n in zip(stops, self.heads, strict=True)]


class _Where:
    """Says at which place of which recurrence an attention call is made, by the states that were seen before it."""

    def __init__(self, looped: LoopedModel, calls: Calls) -> None:
        self.calls, self.n_points = calls, len(looped.points)
        self.names = _tied_names(looped.module) if calls.copies else {}
        self.now, self.made = -1, Counter[str]()
        self.seen = 0

    def __call__(self, module: str) -> tuple[int, Place] | None:
        """(recurrences that have ended, place); None outside of the model's forward pass."""
        self.seen += 1
        if not self.calls.depth:
            return None
        if self.calls.next != self.now:
            self.now = self.calls.next
            self.made.clear()
        name = self.names.get(module, module)
        self.made[name] += 1
        window, slot = divmod(self.now, self.n_points)
        return window, (name, slot, self.made[name] - 1)


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Modules of tied copies by the name of the same part of the first copy."""
    first: dict[tuple[tuple[int, ...], str], str] = {}
    names, held = {}, {".".join(p for p in path.split(".") if p != "_orig_mod"): part
                       for path, part in model.named_modules()}
    for name in held:
        owner = name  # of matrices: the module itself, or the one around it
        while owner and not parameter_identity(held[owner]):
            owner = owner.rpartition(".")[0]
        names[name] = first.setdefault((parameter_identity(held[owner]), name[len(owner):]), name)
    return names


def attention_layers(looped: LoopedModel, prompts: Sequence[Sequence[int]], n_recurrences: int,
                     symbols: Sequence[str] = ()) -> AttentionLayers:
    """Find the attention calls of one recurrence, in a short run of the first prompt.

    Raises:
        ValueError: none is seen in the loop; or the loop ends after one recurrence, so that what belongs to it cannot
            be told from the layers before and after.
        RuntimeError: a module attends in the loop and outside of it.
    """
    most = looped.most_recurrences
    n = 3 * looped.multiple  # three: what attends in every second one is seen as well
    n = max(n_recurrences, n) if looped.ragged else n
    for prompt in prompts:
        found, n_run = _calls_of(looped, prompt, n if most is None else min(n, most), symbols)
        if n_run > 1:
            return _layers_of(looped, found, n_run, tuple(symbols))
        if looped.most_recurrences == 1 and (once := _of_one_recurrence(looped, found)):
            return AttentionLayers(tuple(place[0] for place in once), tuple(found[place][1] for place in once),
                                   tuple(dict.fromkeys(place[0] for place in found if place not in once)),
                                   {place: (number, 0) for number, place in enumerate(once)}, tuple(symbols))
    raise ValueError(f"the loop of {looped.name} ended after one recurrence; what attends in it cannot be told from "
                     "the layers before and after it. Use more recurrences, or attention=False.")


def _calls_of(looped: LoopedModel, prompt: Sequence[int], n: int,
              symbols: Sequence[str]) -> tuple[dict[Place, tuple[set[int], int]], int]:
    """Place -> the windows in which it was seen and its heads, in order; how many recurrences were run."""
    found: dict[Place, tuple[set[int], int]] = {}
    with undisturbed(looped.module):
        torch.manual_seed(0)
        tokens = torch.tensor([list(prompt)], device=looped.device)
        start = looped.initial_state(looped.embed(tokens), seeds=[0]) if looped.is_map else None
        with recording(looped, lambda *_: None) as calls:
            where = _Where(looped, calls)
            try:
                with attention_statistics(looped.module, layer=lambda module, call: where(module), symbols=symbols,
                                          distance=False, continues=True) as seen:
                    looped.logits(tokens, n, start)
            except RuntimeError:
                if where.seen or not calls.forwards:
                    raise
                raise _nothing(looped, "shows no attention") from None
    calls.check_whole()
    for call in seen.calls:
        window, place = cast("tuple[int, Place]", call.layer)
        found.setdefault(place, (set(), call.entropies.shape[1]))[0].add(window)
    return found, sum(calls.recurrences)


def _layers_of(looped: LoopedModel, found: dict[Place, tuple[set[int], int]], n: int,
               symbols: tuple[str, ...]) -> AttentionLayers:
    # what is seen after the last state of a recurrence may belong to that, or to the next one, or stand outside: the
    # first window shows who comes before the first state, the last window who follows the last
    order: list[tuple[int, int, Place]] = []  # (recurrences ended, slot, place)
    outside: dict[str, None] = {}
    for place, (windows, _) in found.items():
        module, slot, _ = place
        if slot or windows == set(range(n)):
            ended = 0
        elif windows == set(range(1, n + 1)):
            ended = 1
        elif windows >= set(range(1, n)):
            raise RuntimeError(f"{module or looped.name} attends inside the loop of {looped.name} and outside of it; "
                               "its calls cannot be told apart. Name the layer's output among the specification's "
                               "points, or use attention=False.")
        elif looped.forwards == "decoding" and windows & set(range(1, n)):
            windows = set()  # within the loop, but not always
        else:  # where an outer loop calls the model again, so are those between two forward passes
            outside[module] = None
            continue
        if windows not in (set(range(n)), set(range(1, n + 1))):
            raise RuntimeError(f"{module or looped.name} does not attend in every recurrence of {looped.name}: its "
                               "maps have no place by recurrence. Use attention=False.")
        order.append((ended, slot, place))
    order.sort(key=lambda entry: entry[:2])  # stable: within a slot they stay as they were called
    inside = {place[0] for _, _, place in order}
    if clash := inside & set(outside):
        raise RuntimeError(f"{sorted(clash)[0]} attends inside the loop of {looped.name} and outside of it; its calls "
                           "cannot be told apart. Use attention=False.")
    if not order:
        raise _nothing(looped, f"attends outside of its loop alone ({', '.join(outside)})")
    often, counted, names, places = Counter(place[0] for _, _, place in order), Counter[str](), [], {}
    for number, (ended, _, place) in enumerate(order):
        counted[place[0]] += 1
        names.append(place[0] if often[place[0]] == 1 else f"{place[0]}#{counted[place[0]]}")
        places[place] = (number, ended)
    return AttentionLayers(tuple(names), tuple(found[place][1] for _, _, place in order), tuple(outside), places,
                           symbols)


def _of_one_recurrence(looped: LoopedModel, found: dict[Place, tuple[set[int], int]]) -> list[Place]:
    """The calls of a model that has one recurrence, a feed-forward one: those between its first state and its last, and
    before the first state those within the module that gives it; none where a module attends twice."""
    first = set(unwrapped(looped.points[0].modules[0]).modules())
    inside = {path for path, part in unwrapped(looped.module).named_modules() if part in first}
    places = [place for place, (windows, _) in found.items() if windows == {0} and (place[1] or place[0] in inside)]
    return places if len({place[0] for place in places}) == len(places) else []


def _nothing(looped: LoopedModel, what: str) -> ValueError:
    return ValueError(f"{looped.name} {what}: there are no statistics to take. If it calls a compiled kernel, name it: "
                      "attention=['flash_attn.flash_attn_func']; if its loop does not attend, leave attention out.")


class AttentionRecording:
    """The numbers of one batch, (row, heads of all layers, [token,] recurrence); NaN where a loop had ended."""

    def __init__(self, looped: LoopedModel, layers: AttentionLayers, n_rows: int, length: int, chosen: Sequence[int],
                 n_recurrences: int) -> None:
        self.looped, self.layers, self.length, self.n_recurrences = looped, layers, length, n_recurrences
        self.chosen = torch.tensor(chosen) + looped.prefix
        self.dtype = torch.float64 if looped.compute_dtype == torch.float64 else torch.float32
        per_map = (n_rows, sum(layers.heads), n_recurrences)
        per_token = (n_rows, sum(layers.heads), len(chosen), n_recurrences)
        shapes = {**dict.fromkeys(_STORED_PER_MAP, per_map), **dict.fromkeys(_STORED_PER_TOKEN, per_token)}
        if layers.pairs is not None:
            if layers.pairs == "all" and len(set(layers.heads)) > 1:
                raise ValueError(f"layers of {looped.name} have {', '.join(map(str, layers.heads))} heads, which "
                                 "cannot be compared head by head. Use attention_pairs='layer'.")
            self.n_depths = n_recurrences * (len(layers.names) if layers.pairs == "all" else 1)
            shapes |= {_STORED_PAIRS: (*per_map, self.n_depths), _STORED_NORM: per_map}
            need = math.prod(shapes[_STORED_PAIRS]) * self.dtype.itemsize
            if need > _MOST_PAIRS:
                raise ValueError(f"distances between {self.n_depths} attention maps of {n_rows} rows and "
                                 f"{sum(layers.heads)} heads take {need / 2**30:.1f} GiB a batch; at most "
                                 f"{_MOST_PAIRS / 2**30:.0f} are held. Use a smaller batch_size, fewer recurrences, or "
                                 "attention_pairs='layer'.")
        self.numbers = {name: torch.full(shape, torch.nan, dtype=self.dtype) for name, shape in shapes.items()}
        self.numbers[_POSITIONS] = torch.full((n_rows,), length + looped.prefix)
        self.numbers[_RUN] = torch.zeros(n_rows, dtype=torch.int64)

    @contextlib.contextmanager
    def watching(self, rows: slice, calls: Calls) -> Iterator[None]:
        """Record one run of some rows, whose states `calls` counts."""
        where, names = _Where(self.looped, calls), self.layers.names
        due: list[int] = []  # recurrences of the calls that have not been taken in
        taken = [0] * len(names)

        def layer(module: str, call: int) -> int | None:
            take_in()  # one map's numbers in memory, not those of all
            found = where(module)
            number, ended = (-1, 0) if found is None else self.layers.places.get(found[1], (-1, 0))
            if number < 0 or found is None or not 0 <= found[0] - ended < self.n_recurrences:
                return None
            due.append(found[0] - ended)
            return number

        def take_in() -> None:
            for call, recurrence in zip(seen.calls, due, strict=True):
                number = cast("int", call.layer)
                if recurrence != taken[number] or recurrence != call.recurrence:
                    raise RuntimeError(f"{names[number]} of {self.looped.name} attended for recurrence "
                                       f"{recurrence + 1} when {taken[number] + 1} was due: it does not attend once in "
                                       "every recurrence. Use attention=False.")
                taken[number] += 1
                self._keep(rows, number, recurrence, call)
            seen.calls.clear()
            due.clear()

        with attention_statistics(self.looped.module, layer=layer, symbols=self.layers.symbols, dtype=self.dtype,
                                  continues=self.looped.forwards == "recurrences", pairs=self.layers.pairs) as seen:
            yield
        take_in()
        for pairs in seen.pairs:
            self._keep_pairs(rows, pairs)
        self.numbers[_RUN][rows] = calls.recurrences[0]
        if any(n != calls.recurrences[0] for n in taken):
            few = min(range(len(names)), key=taken.__getitem__)
            raise RuntimeError(f"{names[few]} of {self.looped.name} attended {taken[few]} times in "
                               f"{calls.recurrences[0]} recurrences: its maps have no place by recurrence. Use "
                               "attention=False.")

    def _keep(self, rows: slice, number: int, recurrence: int, call: AttentionCall) -> None:
        n_rows, n_tokens, heads = rows.stop - rows.start, self.length + self.looped.prefix, self.layers.heads[number]
        maps = (*call.entropies.shape, call.column_sums.shape[-1])
        if maps != (n_rows, heads, n_tokens, n_tokens):
            raise RuntimeError(f"attention maps of {self.layers.names[number]} have shape {maps} where ({n_rows}, "
                               f"{heads}, {n_tokens}, {n_tokens}) is due (prompts, heads, queries, keys): they have no "
                               "place by prompt and token. Use attention=False.")
        at = self.layers.rows[number]
        found = {"map_sink_score": call.sink_scores[..., 0], "map_entropy": call.entropy, "map_maximum": call.maximum,
                 "map_distance": call.distance, "map_concentration": call.concentration}
        for name, values in found.items():
            self.numbers[_STORED + name][rows, at, recurrence] = values.cpu()
        for name, values in (("column_sum", call.column_sums), ("entropy", call.entropies), ("maximum", call.maxima)):
            self.numbers[f"{_STORED}token_{name}"][rows, at, :, recurrence] = values.cpu()[..., self.chosen]


    def _keep_pairs(self, rows: slice, pairs: MapDistances) -> None:
        """Of the maps at depths i and j: those of i's layer, at its recurrence, against j."""
        n_layers = len(self.layers.names) if self.layers.pairs == "all" else 1
        distances, norms = (x.to("cpu", self.dtype) for x in (pairs.distances, pairs.norms))
        places = [(cast("int", layer), recurrence)
                  for layer, recurrence in zip(pairs.layers, pairs.recurrences, strict=True)]
        others = torch.tensor([n_layers * recurrence + (layer if n_layers > 1 else 0) for layer, recurrence in places])
        for i, (layer, recurrence) in enumerate(places):
            at = self.layers.rows[layer]
            self.numbers[_STORED_PAIRS][rows, at, recurrence, others] = distances[:, :, i]
            self.numbers[_STORED_NORM][rows, at, recurrence] = norms[..., i]


def attention_of(store: Store, *, per: str = "map", **wanted: Any) -> Any:
    """The statistics of attention that `capture(..., attention=True)` took, as an xarray dataset.

    Of the map A (queries t, keys k, both of T positions) of one prompt, start, layer, head and recurrence, per="map":

        sink_score = mean_t A[t, 0]                        weight on the first position
        entropy = mean_t H[t],  H[t] = -sum_k A[t, k] ln A[t, k], in nats
        maximum = mean_t max_k A[t, k]
        distance = ||A - A'||_F                            A' the map at the previous recurrence; NaN at the first
        concentration = 1 + sum_k c_k ln c_k / ln T,  c_k = (1 / T) sum_t A[t, k]

    and of every recorded token, per="token": `column_sum` = sum_t A[t, k] of the token as key k, `entropy` = H[t] and
    `maximum` = max_k A[t, k] of the token as query t. In causal maps a key is seen by later queries alone.

    Args:
        store: from `capture`.
        per: "map" or "token".
        wanted: labels, such as layer="block.0.attention", head=[0, 1], prompt=3, token=-1.

    Returns:
        Every variable (row, recurrence), in the precision of the computation (float32, or float64 of models in
        float64), every recurrence in it, even where the states of only some were stored. Coordinates: `prompt`,
        `start`, `layer`, `head` (counted from 0) and, per="token", `token` of each row, in this order, by batches of
        prompts as the store holds them; `n_positions`, queries of its maps, and `n_recurrences` that were run;
        `recurrence`, counted from 1. A layer is one attention call of a recurrence,
        called by its module, with "#1", "#2", ... where that attends several times (an inner loop, one network for two
        states). Of tied copies it is the name of the first. Where a loop ended early, NaN.

    Misleads:
        A layer of attention is not a layer of states. Positions that the model puts before the prompt's tokens count as
        queries and keys: the first position may be one of them. The first query of a causal map has entropy 0 and
        maximum 1, whatever the model does. What attends before and after the loop is not recorded
        (`store.header["attention"]["outside"]`).

    Raises:
        ValueError: a store without such statistics; a label that is not there.

    Source:
        See `dynloop.attention.attention_statistics`.

    Example:
        >>> import tempfile
        >>> from dynloop import capture
        >>> from dynloop.recording import attention_of
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = capture("nano-settles", ["import os"], out=folder + "/s", n_recurrences=4, attention=True)
        ...     attention_of(store, layer="block.0.attention", head=0).entropy.shape
        (1, 4)
    """
    import xarray

    if per not in ("map", "token", "pair"):
        raise ValueError(f"per must be one of map, token, pair; got {per!r}. Choose one.")
    about = store.header.get("attention")
    if about is None:
        raise ValueError(f"{store.folder} holds no statistics of attention: capture again with attention=True.")
    if per == "pair" and about.get("pairs") is None:
        raise ValueError(f"{store.folder} holds no distances between attention maps: capture again with "
                         "attention_pairs='layer', or 'all' for those between layers, too.")
    labels = ("prompt", "start", "layer", "head", *(("token",) if per == "token" else ()))
    for name in wanted:
        if name not in labels:
            raise ValueError(f"no label {name!r} among those of attention per {per}; they are {', '.join(labels)}.")
    stored, names = {"map": (_STORED_PER_MAP, PER_MAP), "token": (_STORED_PER_TOKEN, PER_TOKEN),
                     "pair": ((_STORED_PAIRS, _STORED_NORM), ("distance", "norm"))}[per]
    layer = np.repeat(np.array(about["layers"]), about["heads"])
    head = np.concatenate([np.arange(n) for n in about["heads"]])
    of_row = {"n_positions": _POSITIONS, "n_recurrences": _RUN}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*labels, *names, *of_row)}
    for batch in store.inputs():
        if stored[0] not in batch:
            continue
        shape = batch[stored[0]].shape[:3 if per == "token" else 2]
        at = {"prompt": (0, batch["prompts"]), "start": (0, batch["starts"]), "layer": (1, layer), "head": (1, head),
              "token": (2, batch["positions"])}
        chosen, held = np.ones(shape, dtype=bool), {}
        for name in labels:
            axis, values = at[name]
            values = np.asarray(values)
            held[name] = np.broadcast_to(values.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
            if name in wanted:
                chosen &= np.isin(held[name], np.atleast_1d(wanted[name]))
        for name in labels:
            rows[name].append(held[name][chosen])
        for name, key in zip(names, stored, strict=True):
            if key in batch:
                rows[name].append(batch[key].numpy()[chosen])
        for name, key in of_row.items():
            if key in batch:
                rows[name].append(np.broadcast_to(
                    batch[key].numpy().reshape(-1, *[1] * (len(shape) - 1)), shape)[chosen])
    found = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    if not len(found["prompt"]):
        raise ValueError("no attention map of this store has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items())
                         + f". Layers are {', '.join(about['layers'])}.")
    n = found["entropy" if per != "pair" else "norm"].shape[-1]
    coords: dict[str, Any] = {name: ("row", found[name]) for name in (*labels, *of_row) if name in found}
    coords["recurrence"] = 1 + np.arange(n)
    if per == "pair":
        of_all = about["layers"] if about["pairs"] == "all" else [""]
        coords |= {"other_recurrence": ("other", np.repeat(coords["recurrence"], len(of_all))),
                   "other_layer": ("other", np.tile(np.array(of_all), n))}
    dims = {"distance": ("row", "recurrence", "other")} if per == "pair" else {}
    return xarray.Dataset({name: (dims.get(name, ("row", "recurrence")), found[name]) for name in names
                           if name in found}, coords=coords,
                          attrs={"per": per, "causal": int(bool(store.header.get("causal", True))),
                                 "spacing": torch.finfo(_DTYPES[store.header["dtype"]]).eps})
