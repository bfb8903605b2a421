"""Run a looped model on prompts and record its states on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import operator
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dynloop.models import LoopedModel, load, recording, undisturbed
from dynloop.models.random_start import random_start
from dynloop.recording.attention import AttentionLayers, AttentionRecording, attention_layers
from dynloop.recording.prompts import encode_prompts, positions_of
from dynloop.recording.record import layer_numbers
from dynloop.recording.statistics import per_step
from dynloop.store import SHARD_BYTES, Store, StoreWriter
from dynloop.store.shards import NAMES
from dynloop.store.store import orbits_a_shard
from dynloop.trajectories import DTYPES
from dynloop.version import __version__

STARTS = ("model", "random")


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Prompts of one length that run together, each from every start, and the pieces in which they are stored."""

    number: int
    prompts: list[int]
    n_starts: int
    length: int
    chosen: list[int]  # positions among the prompt's tokens
    n_decoded: int  # tokens after them whose states are recorded too

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(prompt, start) of every row."""
        return [(prompt, start) for prompt in self.prompts for start in range(self.n_starts)]

    @property
    def positions(self) -> list[int]:
        return [*self.chosen, *range(self.length, self.length + self.n_decoded)]

    def pieces(self, n_layers: int, orbit_bytes: int) -> Iterator[tuple[str, slice, slice, slice]]:
        """Shards of at most `SHARD_BYTES`: whole prompts where they fit, else layers, else tokens of one."""
        n_rows, n_tokens = len(self.rows), len(self.positions)
        most = orbits_a_shard(orbit_bytes, SHARD_BYTES)
        tokens = min(n_tokens, most)
        layers = min(n_layers, most // n_tokens) or 1
        rows = min(n_rows, most // (n_tokens * n_layers)) or 1
        number = 0
        for p in range(0, n_rows, rows):
            for layer in range(0, n_layers, layers):
                for t in range(0, n_tokens, tokens):
                    yield (f"batch-{self.number:05d}-states-{number:03d}", slice(p, min(n_rows, p + rows)),
                           slice(layer, min(n_layers, layer + layers)), slice(t, min(n_tokens, t + tokens)))
                    number += 1


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is recorded: checked settings."""

    n_recurrences: int
    recurrences: list[int]  # stored ones, from 0
    layers: list[tuple[int, str, tuple[int, ...]]]  # label, stack, points side by side
    width: int
    n_starts: int
    seed: int
    n_prompts: int
    n_new_tokens: int
    dtype: torch.dtype
    attention: AttentionLayers | None

    @property
    def orbit_bytes(self) -> int:
        """Of one stored orbit."""
        return self.dtype.itemsize * len(self.recurrences) * self.width

    def seed_of(self, prompt: int, start: int) -> int:
        return self.seed + prompt + start * self.n_prompts


def capture(model: LoopedModel | nn.Module | str | Path, inputs: Sequence[Any], *, out: str | Path,
            n_recurrences: int = 128, tokens: Sequence[int] | None = None,
            layers: Sequence[int] | str | None = None, recurrences: Sequence[int] | None = None, seed: int = 0,
            start: str = "model", n_starts: int = 1, n_new_tokens: int = 0, dtype: torch.dtype = torch.float32,
            batch_size: int | None = None, attention: bool | Sequence[str] = False,
            attention_pairs: str | None = None) -> Store:
    """Run a looped model on prompts and record the state after every layer, recurrence and selected token.

    States stream to disk in shards, laid out (prompt, layer, token, recurrence, feature); memory is bounded by one
    batch. A capture that was killed goes on where it stopped when the same call is made again, and yields the same
    bytes. Prompts run unpadded, in batches of one length; a loop that may end early runs them one by one. The model
    runs eagerly, even if it was compiled, without gradients and in evaluation mode; it gives the outputs that it
    gives without a recording, bit for bit, and comes back as it was. With every batch the token numbers, the initial
    states of all tokens, the final logits of the selected tokens and the per-step statistics are kept
    (`Store.inputs`, `step_statistics`).

    Args:
        model: a looped model (`dynloop.models`), a module of a known family, a shipped checkpoint's name, a folder
            that `dynloop train` wrote, or a checkpoint of a known family.
        inputs: prompts, as texts or sequences of token numbers; or a tokenizer's padded batch with its mask, whose
            padding is taken off.
        out: folder of the store.
        n_recurrences: applications of the block, whatever the model was trained with; of a feed-forward model 1.
        tokens: positions to record, negative ones from the end; by default all.
        layers: places in the recurrence to record, counted from 1; by default all. The last one is the loop state
            itself, after the norm that closes the recurrence where there is one; of two-timescale models the state is
            joint, and "state" records it as one orbit.
        recurrences: which to store, counted from 1, negative ones from the end; by default all. Statistics are taken
            of all. An analyzer takes what is stored for consecutive steps.
        seed: prompt i starts from seed + i, where the initial state is random.
        start: "model" for the model's own initial state; "random" for one of the same length in a random direction for
            every token, so that any model can be started in several places.
        n_starts: initial states a prompt; start s of prompt i has seed + i + s * (number of prompts).
        n_new_tokens: tokens to generate after each prompt with the model's cache; the states of all but the last of
            them are recorded too, each from the forward pass in which it was new (label "decoding"; 0 is the prompt).
        dtype: in which states are stored: float32, bfloat16, float16 or float64.
        batch_size: prompts that run together; by default as many as fill one shard, at most 16. Part of what is
            recorded, because it can change the last bits of a matrix product.
        attention: take statistics of every attention map of the loop in the same forward passes, and keep them with
            the batch (`attention_of`): by recurrence, layer and head. Where the model calls flash-attention functions,
            their dotted paths, as the model's code looks them up (see `attention_statistics`).
        attention_pairs: with `attention`, keep the distances between all maps of each "layer" along the loop, too, or
            between those of "all" layers (`attention_of(store, per="pair")`). Queries and keys of all recurrences of a
            batch are in memory until it ends: choose `batch_size` by that.

    Returns:
        The finished store. Labels: model, prompt, layer, token, seed, stack, start, and decoding where tokens were
        generated. An orbit of a loop that ended early has its own length.

    Misleads: stored in fewer bits than were computed, states repeat before the model does; the store's resolution
        then is that of the storage, and the statistics are those of the computation. With a cache, a later token sees
        what earlier ones computed in their own recurrences. Where the input enters through the initial state alone (a
        loop without injection), a random start leaves the prompt out.

    Raises:
        ValueError: prompts, tokens, layers or counts that do not exist; a padded batch; states too large for `dtype`;
            attention of a loop that does not attend, or of generated tokens.
        StoreError: `out` holds something else, or a capture with other settings.
        OSError: the disk is too small or full; what was committed stays and the same call goes on.
        RuntimeError: the modules were not called as the specification says: the recording would be wrong.
    """
    looped: LoopedModel = load(model)
    prompts = encode_prompts(looped, inputs)
    try:
        n_recurrences, seed = operator.index(n_recurrences), operator.index(seed)
        n_starts, n_new_tokens = operator.index(n_starts), operator.index(n_new_tokens)
        batch_size = None if batch_size is None else operator.index(batch_size)
        tokens = None if tokens is None else [operator.index(t) for t in tokens]
        recurrences = None if recurrences is None else [operator.index(r) for r in recurrences]
    except TypeError as error:
        raise ValueError("n_recurrences, seed, n_starts, n_new_tokens and batch_size are whole numbers, tokens and "
                         f"recurrences lists of them: {error}.") from None
    for name, value, least in (("n_recurrences", n_recurrences, 1), ("n_starts", n_starts, 1),
                               ("n_new_tokens", n_new_tokens, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be torch.float32, bfloat16, float16 or float64; got {dtype!r}.")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}; got {start!r}.")
    if start == "random":  # the seeds matter, whatever the model does by itself
        looped = random_start(looped)
    _check_run(looped, n_recurrences, n_starts, n_new_tokens)
    watched = _attention(looped, prompts, n_recurrences, n_new_tokens, attention, attention_pairs)
    plan = _Plan(n_recurrences, _recurrences(recurrences, n_recurrences), _layers(looped, layers),
                 looped.state_width if layers == "state" else looped.width, n_starts, seed, len(prompts),
                 n_new_tokens, dtype, watched)
    if plan.orbit_bytes > SHARD_BYTES:
        raise ValueError(f"one orbit of {len(plan.recurrences)} x {plan.width} {str(dtype).removeprefix('torch.')} "
                         f"takes {plan.orbit_bytes} bytes; a shard holds {SHARD_BYTES}. Use fewer recurrences.")
    batches = list(_batches(prompts, tokens, plan, batch_size))
    header = {
        "labels": {"model": looped.name},
        "model": looped.provenance, "training_recurrences": looped.training_recurrences,
        "n_recurrences": n_recurrences, "recurrences": None if recurrences is None else [r + 1 for r in
                                                                                         plan.recurrences],
        "layers": [layer for layer, _, _ in plan.layers], "stacks": [stack for _, stack, _ in plan.layers],
        "state_points": [1 + range(len(looped.points))[point] for point in looped.state_points],
        "seed": seed, "start": start, "n_starts": n_starts, "random_start": looped.random_start,
        "n_new_tokens": n_new_tokens, **({} if watched is None else {"attention": watched.about}),
        "batch_size": batch_size, "tokens": None if tokens is None else list(tokens),
        "n_prompts": len(prompts), "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "dtype": NAMES[looped.compute_dtype], "stored_dtype": NAMES[dtype],
        "resolution": max(torch.finfo(looped.compute_dtype).eps, torch.finfo(dtype).eps),
        "device": looped.device.type, "attention_kernel": "scaled_dot_product_attention",
        "matmul_precision": torch.get_float32_matmul_precision(), "causal": looped.causal, "mask": looped.mask,
        "versions": {"dynloop": __version__, "torch": torch.__version__, "python": platform.python_version(),
                     **({"transformers": sys.modules["transformers"].__version__}
                        if _is_of_transformers(looped) else {})},
    }
    with StoreWriter(out, header) as writer:
        if not writer.complete:
            _fill(writer, looped, prompts, batches, plan)
            writer.finish()
    return Store(out)


def _is_of_transformers(looped: LoopedModel) -> bool:
    """Whether its modules come from that package, and not whether somebody has imported it in this process."""
    return any(type(part).__module__.split(".")[0] in ("transformers", "transformers_modules")
               for part in looped.module.modules())


def _check_run(looped: LoopedModel, n_recurrences: int, n_starts: int, n_new_tokens: int) -> None:
    """Refuse what the model cannot run."""
    looped.check_recurrences(n_recurrences)
    if n_starts > 1 and not looped.random_start:
        raise ValueError(f"every start of {looped.name} is the same: its initial state is not random. Use "
                         "start='random', or n_starts=1.")
    if n_new_tokens and looped.generate is None:
        raise ValueError(f"the specification of {looped.name} has no generate=: use n_new_tokens=0, and record the "
                         "text that it wrote as a prompt.")


def _attention(looped: LoopedModel, prompts: list[list[int]], n_recurrences: int, n_new_tokens: int,
               attention: bool | Sequence[str], pairs: str | None) -> AttentionLayers | None:
    """The attention calls whose statistics are taken; None for none."""
    if isinstance(attention, str) or not isinstance(attention, bool | Sequence) or \
            (not isinstance(attention, bool) and not all(isinstance(path, str) for path in attention)):
        raise ValueError("attention must be True, False or a list of dotted paths of flash-attention functions; got "
                         f"{attention!r}.")
    if pairs not in (None, "layer", "all") or (pairs is not None and attention is False):
        raise ValueError(f"attention_pairs must be None, 'layer' or 'all', the latter two with attention=True; got "
                         f"{pairs!r} with attention={attention!r}.")
    if attention is False:
        return None
    if n_new_tokens:
        raise ValueError("statistics of attention are of prompts: with a cache the maps of later tokens are single "
                         "rows, with no earlier map to compare them with. Use n_new_tokens=0, and record the text that "
                         "was written as a prompt.")
    found = attention_layers(looped, prompts, n_recurrences, () if attention is True else attention)
    return dataclasses.replace(found, pairs=pairs)


def _recurrences(chosen: Sequence[int] | None, n_recurrences: int) -> list[int]:
    if chosen is None:
        return list(range(n_recurrences))
    found = sorted({r - 1 if r > 0 else r + n_recurrences for r in chosen})
    if not found or 0 in chosen or found[0] < 0 or found[-1] >= n_recurrences:
        raise ValueError(f"recurrences must be among 1 to {n_recurrences}, or negative ones from the end; got "
                         f"{list(chosen)}.")
    return found


def _layers(looped: LoopedModel, layers: Sequence[int] | str | None) -> list[tuple[int, str, tuple[int, ...]]]:
    """(label, stack, points) of what is recorded."""
    n_points = len(looped.points)
    if layers == "state":
        points = tuple(range(n_points)[point] for point in looped.state_points)
        return [(max(points) + 1, "+".join(dict.fromkeys(looped.points[point].stack for point in points)), points)]
    if isinstance(layers, str):
        raise ValueError(f"layers must be among 1 to {n_points}, or 'state' for the loop state; got {layers!r}.")
    return [(layer, looped.points[layer - 1].stack, (layer - 1,)) for layer in layer_numbers(looped, layers)]


def _fill(writer: StoreWriter, looped: LoopedModel, prompts: list[list[int]], batches: list[_Batch],
          plan: _Plan) -> None:
    """Run the batches that are not committed yet."""
    n_layers, orbit_bytes = len(plan.layers), plan.orbit_bytes
    missing = [b for b in batches if not all(map(writer.has, [f"batch-{b.number:05d}-inputs",
                                                              *(p[0] for p in b.pieces(n_layers, orbit_bytes))]))]
    need = sum(len(b.rows) * len(b.positions) for b in missing) * n_layers * orbit_bytes
    free = shutil.disk_usage(writer.folder).free
    if need > free:
        raise OSError(f"the recording needs {need / 2**30:.1f} GiB more at {writer.folder}; {free / 2**30:.1f} GiB are "
                      "free. Select fewer tokens, layers, recurrences or prompts, or choose another disk.")
    numbers, stacks = [layer for layer, _, _ in plan.layers], [stack for _, stack, _ in plan.layers]
    with tqdm(total=len(batches), initial=len(batches) - len(missing), desc=f"capture {looped.name}", unit="batch",
              disable=None) as progress:
        for batch in missing:
            states, lengths, about = _run(looped, [prompts[p] for p in batch.prompts], batch, plan)
            about = {**about, **per_step(states, n_starts=plan.n_starts)}
            seeds, decoding = [plan.seed_of(p, s) for p, s in batch.rows], [0] * len(batch.chosen)
            decoding += range(1, 1 + batch.n_decoded)
            for name, rows, some_layers, some_tokens in batch.pieces(n_layers, orbit_bytes):
                piece = _stored(states[rows, some_layers, some_tokens], plan, looped.name)
                labels: dict[str, tuple[int, Any]] = {
                    "prompt": (0, [p for p, _ in batch.rows[rows]]), "layer": (1, numbers[some_layers]),
                    "token": (2, batch.positions[some_tokens]), "seed": (0, seeds[rows]),
                    "stack": (1, stacks[some_layers]), "start": (0, [s for _, s in batch.rows[rows]])}
                if plan.n_new_tokens:
                    labels["decoding"] = (2, decoding[some_tokens])
                cut = torch.searchsorted(torch.tensor(plan.recurrences), lengths[rows, some_tokens])  # stored of them
                writer.write_states(name, piece, labels,
                                    lengths=cut[:, None].expand(piece.shape[:3]).reshape(-1).numpy())
            writer.write(f"batch-{batch.number:05d}-inputs", about, prompts=[p for p, _ in batch.rows],
                         positions=batch.positions, starts=[s for _, s in batch.rows], seeds=seeds, layers=numbers)
            del states, about  # one batch in memory, not two
            progress.update()


def _stored(states: torch.Tensor, plan: _Plan, name: str) -> torch.Tensor:
    """The stored recurrences of states in the dtype of storage."""
    if len(plan.recurrences) != plan.n_recurrences:
        states = states[..., plan.recurrences, :]
    cast = states.to("cpu", plan.dtype)
    if torch.finfo(plan.dtype).max < torch.finfo(states.dtype).max and \
            int(cast.isfinite().sum()) != int(states.isfinite().sum()):
        raise ValueError(f"states of {name} are too large for {str(plan.dtype).removeprefix('torch.')} and would pass "
                         f"for diverged. Store them with dtype={states.dtype}.")
    return cast


def _batches(prompts: list[list[int]], tokens: Sequence[int] | None, plan: _Plan,
             batch_size: int | None) -> Iterator[_Batch]:
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    number, decoded = 0, max(0, plan.n_new_tokens - 1)
    in_memory = max(4, plan.dtype.itemsize) * plan.n_recurrences * plan.width
    for length, members in sorted(by_length.items()):
        chosen = positions_of(tokens, length, members[0])
        orbits = len(plan.layers) * (len(chosen) + decoded) * plan.n_starts
        fitting = max(1, min(16, orbits_a_shard(in_memory, SHARD_BYTES) // orbits))
        size = batch_size or fitting
        for first in range(0, len(members), size):
            yield _Batch(number, members[first:first + size], plan.n_starts, length, chosen, decoded)
            number += 1


class _Recording:
    """States (row, layer, token, recurrence, feature) as the model computed them, on its device where they fit."""

    def __init__(self, looped: LoopedModel, batch: _Batch, plan: _Plan) -> None:
        self.looped, self.batch, self.plan = looped, batch, plan
        self.computed = looped.compute_dtype  # here, where no autocast of the model's own is on
        self.slots = {point: (layer, slice(part * looped.width, (part + 1) * looped.width))
                      for layer, (_, _, points) in enumerate(plan.layers) for part, point in enumerate(points)}
        self.states: torch.Tensor | None = None
        self.rows = slice(0, 0)  # of the run that goes on
        self.chosen: dict[torch.device, torch.Tensor] = {}

    def _allocate(self, state: torch.Tensor) -> torch.Tensor:
        name, computed = self.looped.name, self.computed
        if torch.finfo(state.dtype).eps > torch.finfo(computed).eps:
            raise RuntimeError(f"{name} computes its states in {state.dtype}, its specification says {computed}: the "
                               "floor of its precision would be taken for too low. Set dtype= in the specification.")
        shape = (len(self.batch.rows), len(self.plan.layers), len(self.batch.positions), self.plan.n_recurrences,
                 self.plan.width)
        device = state.device
        if device.type == "cuda" and \
                2 * torch.Size(shape).numel() * state.dtype.itemsize > torch.cuda.mem_get_info(device)[0]:
            device = torch.device("cpu")
        if self.looped.ragged:
            return torch.full(shape, torch.nan, dtype=state.dtype, device=device)
        return torch.empty(shape, dtype=state.dtype, device=device)

    def __call__(self, forward: int, recurrence: int, point: int, state: torch.Tensor) -> None:
        """One state of the run that goes on, from `recording`."""
        if point not in self.slots or recurrence >= self.plan.n_recurrences or forward > self.batch.n_decoded:
            return
        looped, n_rows = self.looped, self.rows.stop - self.rows.start
        seen = self.batch.length + looped.prefix
        fits = (seen,) if forward == 0 else (1, seen + forward)
        if state.ndim != 3 or len(state) != n_rows or state.shape[1] not in fits or state.shape[2] != looped.width:
            raise RuntimeError(f"a state of {looped.name} has shape {tuple(state.shape)} where ({n_rows}, {seen}, "
                               f"{looped.width}) is due (prompts, tokens, features): a padded batch, tokens that were "
                               "left out, or another module than the specification means.")
        if self.states is None:
            self.states = self._allocate(state)
        layer, features = self.slots[point]
        state = state.detach()
        if forward:
            places, state = slice(len(self.batch.chosen) + forward - 1, len(self.batch.chosen) + forward), state[:, -1:]
        else:
            places = slice(0, len(self.batch.chosen))
            if state.device not in self.chosen:
                self.chosen[state.device] = torch.tensor(self.batch.chosen, device=state.device) + looped.prefix
            state = state[:, self.chosen[state.device]]
        self.states[self.rows, layer, places, recurrence, features] = state.to(self.states.device)


def _run(looped: LoopedModel, prompts: list[list[int]], batch: _Batch,
         plan: _Plan) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """States as the model computed them, how many recurrences each (row, token) has, and what they started from."""
    device = looped.device
    tokens = torch.tensor(prompts, device=device).repeat_interleave(plan.n_starts, dim=0)
    seeds = [plan.seed_of(prompt, start) for prompt, start in batch.rows]
    # where a loop may end early or the model draws its own numbers, what runs beside a prompt would change it
    alone = looped.ragged or (looped.random_start and (not looped.is_map or plan.n_new_tokens > 0))
    size = 1 if alone else len(seeds)
    record = _Recording(looped, batch, plan)
    maps = None if plan.attention is None else AttentionRecording(looped, plan.attention, len(seeds), batch.length,
                                                                  batch.chosen, plan.n_recurrences)
    lengths = torch.full((len(seeds), len(batch.positions)), plan.n_recurrences)
    starts: list[torch.Tensor] = []
    results: list[torch.Tensor] = []
    for first in range(0, len(seeds), size):
        record.rows = slice(first, first + size)
        with undisturbed(looped.module):
            torch.manual_seed(seeds[first])
            some, start = tokens[record.rows], None
            if looped.is_map:
                start = looped.initial_state(looped.embed(some), seeds=seeds[record.rows])
                starts.append(start.cpu())
            drawn = torch.get_rng_state()
            with recording(looped, record) as calls, \
                    contextlib.nullcontext() if maps is None else maps.watching(record.rows, calls):
                if plan.n_new_tokens:
                    assert looped.generate is not None  # checked at the door
                    result = looped.generate(some, plan.n_recurrences, start, plan.n_new_tokens)
                else:
                    result = looped.logits(some, plan.n_recurrences, start).float()
                    if result.ndim > 1 and result.shape[1] == batch.length:
                        result = result[:, batch.chosen]
            results.append(result.cpu())
            if not looped.random_start and not torch.equal(drawn, torch.get_rng_state()):
                raise RuntimeError(f"{looped.name} draws random numbers while it runs (dropout that is always on, an "
                                   "undeclared random start): its states would depend on what runs beside them. Switch "
                                   "that off, or say random_start=True in the specification.")
        calls.check(plan.n_recurrences, max(1, plan.n_new_tokens))
        lengths[record.rows, :len(batch.chosen)] = calls.recurrences[0]
        for forward in range(batch.n_decoded):
            lengths[record.rows, len(batch.chosen) + forward] = calls.recurrences[1 + forward]
    assert record.states is not None  # some point was called
    about = {"tokens": tokens.cpu(), ("generated" if plan.n_new_tokens else "logits"): torch.cat(results)}
    return record.states, lengths, {**about, **({"initial_states": torch.cat(starts)} if starts else {}),
                                    **({} if maps is None else maps.numbers)}
