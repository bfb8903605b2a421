"""Run a looped model on prompts and record its states on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dynloop.models import LoopedModel, nano, undisturbed
from dynloop.nano import NanoModel
from dynloop.store import SHARD_BYTES, Store, StoreWriter
from dynloop.store.shards import NAMES
from dynloop.store.store import orbits_a_shard
from dynloop.version import __version__


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Prompts of one length that run together, and the pieces in which their states are stored."""

    number: int
    prompts: list[int]
    positions: list[int]

    def pieces(self, n_layers: int, orbit_bytes: int) -> Iterator[tuple[str, slice, slice, slice]]:
        """Shards of at most `SHARD_BYTES`: whole prompts where they fit, else layers, else tokens of one."""
        n_prompts, n_tokens = len(self.prompts), len(self.positions)
        most = orbits_a_shard(orbit_bytes, SHARD_BYTES)
        tokens = min(n_tokens, most)
        layers = min(n_layers, most // n_tokens) or 1
        prompts = min(n_prompts, most // (n_tokens * n_layers)) or 1
        number = 0
        for p in range(0, n_prompts, prompts):
            for layer in range(0, n_layers, layers):
                for t in range(0, n_tokens, tokens):
                    yield (f"batch-{self.number:05d}-states-{number:03d}", slice(p, min(n_prompts, p + prompts)),
                           slice(layer, min(n_layers, layer + layers)), slice(t, min(n_tokens, t + tokens)))
                    number += 1


def _encode(model: LoopedModel, inputs: Sequence[Any]) -> list[list[int]]:
    if isinstance(inputs, str | bytes) or not len(inputs):
        raise ValueError("inputs must be a list of prompts (texts, or sequences of token numbers) with at least one; "
                         f"got {'none' if not len(inputs) else type(inputs).__name__}. One prompt? Pass [prompt].")
    prompts = []
    for number, given in enumerate(inputs):
        tokens = model.encode(given) if isinstance(given, str) else list(given)
        wrong = [t for t in tokens if isinstance(t, bool) or int(t) != t or not 0 <= t < model.vocabulary]
        if wrong:
            raise ValueError(f"prompt {number} holds {wrong[0]!r}; tokens of {model.name} are whole numbers from 0 to "
                             f"{model.vocabulary - 1}.")
        tokens = [int(t) for t in tokens]
        if not tokens:
            raise ValueError(f"prompt {number} is empty; every prompt needs at least one token. Leave it out.")
        prompts.append(tokens)
    return prompts


def _positions(tokens: Sequence[int] | None, length: int, prompt: int) -> list[int]:
    if tokens is None:
        return list(range(length))
    chosen = sorted({t + length if t < 0 else t for t in tokens})
    if not chosen or chosen[0] < 0 or chosen[-1] >= length:
        raise ValueError(f"tokens {list(tokens)} do not all exist in prompt {prompt}, which has {length}. Choose "
                         "positions below the shortest prompt's length, or negative ones from its end.")
    return chosen


def capture(model: LoopedModel | NanoModel | str | Path, inputs: Sequence[Any], *, out: str | Path,
            n_recurrences: int = 128, tokens: Sequence[int] | None = None, layers: Sequence[int] | None = None,
            seed: int = 0, batch_size: int | None = None) -> Store:
    """Run a looped model on prompts and record the residual state after every layer, recurrence and selected token.

    States stream to disk in shards, in float32, laid out (prompt, layer, token, recurrence, feature); memory is
    bounded by one batch. A capture that was killed goes on where it stopped when the same call is made again, and
    yields the same bytes. Prompts run unpadded, in batches of one length. With every batch the token numbers, the
    initial states of all tokens and the final logits of the selected tokens are kept (`Store.inputs`).

    Args:
        model: a looped model, a nano model, a shipped checkpoint's name or a folder that `dynloop train` wrote.
        inputs: prompts, as texts or sequences of token numbers.
        out: folder of the store.
        n_recurrences: applications of the block, whatever the model was trained with.
        tokens: positions to record, negative ones from the end; by default all.
        layers: layers of the block to record, counted from 1; by default all. The last one is the loop state itself,
            after the norm that closes the recurrence where there is one.
        seed: prompt i starts from seed + i, where the initial state is random.
        batch_size: prompts that run together; by default as many as fill one shard, at most 16. Part of what is
            recorded, because it can change the last bits of a matrix product.

    Returns:
        The finished store. Labels: model, prompt, layer, token, seed.

    Raises:
        ValueError: prompts, tokens, layers or counts that do not exist.
        StoreError: `out` holds something else, or a capture with other settings.
        OSError: the disk is too small or full; what was committed stays and the same call goes on.
        RuntimeError: a layer was not called once a recurrence: the recording would be wrong.
    """
    looped = model if isinstance(model, LoopedModel) else nano(model)
    prompts = _encode(looped, inputs)
    try:
        n_recurrences, seed = operator.index(n_recurrences), operator.index(seed)
        batch_size = None if batch_size is None else operator.index(batch_size)
        tokens = None if tokens is None else [operator.index(t) for t in tokens]
        layers = None if layers is None else [operator.index(layer) for layer in layers]
    except TypeError as error:
        raise ValueError(f"n_recurrences, seed, batch_size, tokens and layers are whole numbers: {error}.") from None
    if n_recurrences < 1:
        raise ValueError(f"n_recurrences must be at least 1; got {n_recurrences}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    n_layers = len(looped.recorded)
    kept = list(range(1, n_layers + 1)) if layers is None else sorted(set(layers))
    if not kept or kept[0] < 1 or kept[-1] > n_layers:
        raise ValueError(f"layers must be among 1 to {n_layers}; got {layers}.")
    weight = next(looped.module.parameters())
    orbit_bytes = 4 * n_recurrences * looped.width
    if orbit_bytes > SHARD_BYTES:
        raise ValueError(f"one orbit of {n_recurrences} x {looped.width} float32 takes {orbit_bytes} bytes; a shard "
                         f"holds {SHARD_BYTES}. Use fewer recurrences.")
    batches = list(_batches(prompts, tokens, len(kept), orbit_bytes, batch_size))
    header = {
        "labels": {"model": looped.name},
        "model": looped.provenance, "training_recurrences": looped.training_recurrences,
        "n_recurrences": n_recurrences, "layers": kept, "seed": seed, "random_start": looped.random_start,
        "batch_size": batch_size, "tokens": None if tokens is None else list(tokens),
        "n_prompts": len(prompts), "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "dtype": NAMES[weight.dtype], "stored_dtype": "F32", "resolution": torch.finfo(weight.dtype).eps,
        "device": weight.device.type, "attention_kernel": "scaled_dot_product_attention",
        "versions": {"dynloop": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    with StoreWriter(out, header) as writer:
        if not writer.complete:
            _fill(writer, looped, prompts, batches, n_recurrences, kept, orbit_bytes, seed)
            writer.finish()
    return Store(out)


def _fill(writer: StoreWriter, looped: LoopedModel, prompts: list[list[int]], batches: list[_Batch],
          n_recurrences: int, kept: list[int], orbit_bytes: int, seed: int) -> None:
    """Run the batches that are not committed yet."""
    missing = [b for b in batches if not all(map(writer.has, [f"batch-{b.number:05d}-inputs",
                                                              *(p[0] for p in b.pieces(len(kept), orbit_bytes))]))]
    need = sum(len(b.prompts) * len(b.positions) for b in missing) * len(kept) * orbit_bytes
    free = shutil.disk_usage(writer.folder).free
    if need > free:
        raise OSError(f"the recording needs {need / 2**30:.1f} GiB more at {writer.folder}; {free / 2**30:.1f} GiB are "
                      "free. Select fewer tokens, layers, recurrences or prompts, or choose another disk.")
    with tqdm(total=len(batches), initial=len(batches) - len(missing), desc=f"capture {looped.name}", unit="batch",
              disable=None) as progress:
        for batch in missing:
            states, inputs_of_batch = _run(looped, [prompts[p] for p in batch.prompts], batch, n_recurrences,
                                           [layer - 1 for layer in kept], seed)
            for name, rows, some_layers, some_tokens in batch.pieces(len(kept), orbit_bytes):
                writer.write_states(name, states[rows, some_layers, some_tokens], {
                    "prompt": (0, batch.prompts[rows]), "layer": (1, kept[some_layers]),
                    "token": (2, batch.positions[some_tokens]), "seed": (0, [seed + p for p in batch.prompts[rows]])})
            writer.write(f"batch-{batch.number:05d}-inputs", inputs_of_batch, prompts=batch.prompts,
                         positions=batch.positions)
            del states, inputs_of_batch  # one batch in memory, not two
            progress.update()


def _batches(prompts: list[list[int]], tokens: Sequence[int] | None, n_layers: int, orbit_bytes: int,
             batch_size: int | None) -> Iterator[_Batch]:
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    number = 0
    for length, members in sorted(by_length.items()):
        positions = _positions(tokens, length, members[0])
        fitting = max(1, min(16, orbits_a_shard(orbit_bytes, SHARD_BYTES) // (n_layers * len(positions))))
        size = batch_size or fitting
        for first in range(0, len(members), size):
            yield _Batch(number, members[first:first + size], positions)
            number += 1


def _run(looped: LoopedModel, prompts: list[list[int]], batch: _Batch, n_recurrences: int, layers: list[int],
         seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """States (prompt, layer, token, recurrence, feature) in float32, and what they started from."""
    device = next(looped.module.parameters()).device
    tokens = torch.tensor(prompts, device=device)
    positions = torch.tensor(batch.positions, device=device)
    states = torch.empty(len(prompts), len(layers), len(positions), n_recurrences, looped.width)
    calls = [0] * len(layers)

    def record(index: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            if calls[index] < n_recurrences:
                states[:, index, :, calls[index]] = output[:, positions].to("cpu", torch.float32)
            calls[index] += 1
        return hook

    with undisturbed(looped.module):
        start = looped.initial_state(looped.embed(tokens), seeds=[seed + p for p in batch.prompts])
        handles = [looped.recorded[layer].register_forward_hook(record(i)) for i, layer in enumerate(layers)]
        try:
            logits = looped.run(tokens, n_recurrences, start)
        finally:
            for handle in handles:
                handle.remove()
    if any(n != n_recurrences for n in calls):
        raise RuntimeError(f"the recorded layers of {looped.name} were called {calls} times in {n_recurrences} "
                           "recurrences; each must be called once a recurrence. The model's specification is wrong.")
    return states, {"tokens": tokens.cpu(), "initial_states": start.float().cpu(),
                    "logits": logits[:, positions].float().cpu()}
