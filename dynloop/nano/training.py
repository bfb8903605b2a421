"""Train a nano model, on CPU or CUDA: seeded, logged one JSON line a step, and safe to interrupt at any moment."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from dynloop.nano.answers import accuracies
from dynloop.nano.config import NanoConfig, TrainingConfig
from dynloop.nano.corpus import Corpus
from dynloop.nano.model import NanoModel, model_hash
from dynloop.nano.task import Task

WEIGHTS, RECORD, LOG, CHECKPOINT = "model.safetensors", "model.json", "log.jsonl", "checkpoint.pt"
MONITOR = "monitor.jsonl"  # what a monitor may write there
_MOST_ASKED = 32  # recurrences after which questions of a task are answered
_NOT_ASKED = -100  # in the place of a byte to predict: it has no say in the loss


def _targets(windows: torch.Tensor, asked: np.ndarray | None) -> torch.Tensor:
    """The bytes to predict, (batch, bytes): all but the first, or of these the ones that are asked for."""
    if asked is None:
        return windows[:, 1:]
    return windows[:, 1:].masked_fill(~torch.from_numpy(asked[:, 1:]).to(windows.device), _NOT_ASKED)


def held_out_loss(model: NanoModel, corpus: Corpus | Task, *, n_recurrences: int | None = None, n: int = 64,
                  length: int = 96, seed: int = 0) -> float:
    """Mean loss in nats per byte over n fixed held-out windows, after `n_recurrences` loops (default: as trained).

    Of a task: per byte of the answers to at most n questions of "in_distribution".
    """
    device = model.embedding.weight.device
    held_out, asked = corpus.held_out_batch(n=n, length=length + 1)
    windows = torch.from_numpy(held_out).long().to(device)
    targets = _targets(windows, asked)
    n, n_bytes = len(windows), int((targets != _NOT_ASKED).sum())
    was_training = model.training
    model.eval()
    try:
        total = 0.0
        with torch.no_grad():
            for first in range(0, n, 16):
                part = windows[first:first + 16]
                seeds = range(seed + first, seed + first + len(part))
                logits = model(part[:, :-1], n_recurrences=n_recurrences, seeds=seeds)
                total += F.cross_entropy(logits.flatten(0, 1), targets[first:first + 16].flatten(),
                                         ignore_index=_NOT_ASKED, reduction="sum").item()
    finally:
        model.train(was_training)
    return total / n_bytes


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then put the file in place whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
    except RuntimeError as error:  # torch's word for a full disk
        if "enforce fail" in str(error) or "unexpected pos" in str(error):
            raise OSError(errno.ENOSPC, "cannot write", str(path)) from error
        raise
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_model(model: NanoModel, folder: str | Path, *, record: dict | None = None) -> Path:
    """Write `model.safetensors` and `model.json` (configuration, hash, training record) into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    try:
        _write_atomically(folder / WEIGHTS, lambda path: save_file(weights, path))
    except SafetensorError as error:  # a full disk comes as this
        raise OSError(errno.ENOSPC, str(error), str(folder / WEIGHTS)) from error
    description = {"model": dataclasses.asdict(model.config), "sha256": model_hash(model), **(record or {})}
    _write_atomically(folder / RECORD, lambda path: path.write_text(json.dumps(description, indent=1) + "\n"))
    return folder


def load_model(folder: str | Path) -> tuple[NanoModel, dict]:
    """Read a model and its record from a folder that `save_model` or `train` wrote.

    Raises:
        FileNotFoundError: the folder holds no finished model.
        ValueError: the weights are not those that the record describes.
    """
    folder = Path(folder)
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            hint = " Its training was interrupted: run the same `dynloop train` command again to finish it." \
                if (folder / CHECKPOINT).exists() else " Name a folder that `dynloop train` wrote."
            raise FileNotFoundError(f"no {name} in {folder}.{hint}")
    try:
        record = json.loads((folder / RECORD).read_text())
        model = NanoModel(NanoConfig.from_dict(record["model"]))
        model.load_state_dict(load_file(folder / WEIGHTS))
        meant = record["sha256"]
    except (KeyError, TypeError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} does not hold a nano model: {error}") from error
    if model_hash(model) != meant:
        raise ValueError(f"the weights in {folder} are not those that {RECORD} describes: their hash differs. "
                         "Restore the folder or train again.")
    return model.eval(), record


def train(config: NanoConfig, training: TrainingConfig, corpus: Corpus | Task, folder: str | Path, *,
          device: str = "cpu", name: str | None = None,
          monitor: Callable[[NanoModel], Callable[[int], object]] | None = None) -> NanoModel:
    """Train a model into a folder; when interrupted, the same call goes on from the last checkpoint.

    The folder receives `log.jsonl` (a line a logged step), `checkpoint.pt` while training runs, and at the end
    `model.safetensors` with `model.json`. Batches, recurrences and random starts depend on (seed, step) alone, so an
    interrupted run ends where an undisturbed one does.

    Of a task (`dynloop.nano.tasks`) instead of a corpus each window is one question with its answer, and the loss is
    that of the answer's bytes alone; the record then holds `accuracy` by split and number of recurrences, too.

    `monitor` is given the model before the first step, and what it returns the number of every step that is done, such
    as `lambda model: LoopMonitor(model, probe, log=folder).step`.

    Raises:
        FileExistsError: the folder holds another model, or one trained with other settings.
        FloatingPointError: the loss left the finite numbers.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": dataclasses.asdict(config), "training": dataclasses.asdict(training),
                "corpus": corpus.describe()}
    if (folder / RECORD).exists():
        model, record = load_model(folder)
        if {key: record.get(key) for key in settings} != settings:
            raise FileExistsError(f"{folder} holds a model that was made with other settings. Name another folder.")
        return model
    model = NanoModel(config, seed=training.seed).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": training.weight_decay},
                                   {"params": vectors, "weight_decay": 0.0}], lr=training.rate(0), betas=(0.9, 0.95))
    first, spent, log_size = 0, 0.0, 0
    if (folder / CHECKPOINT).exists():
        saved = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
        if saved["settings"] != json.dumps(settings, sort_keys=True):
            raise FileExistsError(f"{folder} holds an unfinished training with other settings or another corpus. "
                                  "Name another folder, or delete this one.")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent, log_size = saved["step"], saved["seconds"], saved["log_size"]
    elif any(path.name.removesuffix(".tmp") not in (LOG, CHECKPOINT, WEIGHTS, RECORD, MONITOR)
             for path in folder.iterdir()) \
            or ((folder / LOG).exists() and (folder / LOG).read_text()[:7] not in ("", '{"step"')):
        raise FileExistsError(f"{folder} holds something else than a training. Name another folder.")
    with open(folder / LOG, "ab") as log:
        log.truncate(min(log_size, log.tell()))  # lines written after the last checkpoint are written again
    watch = None if monitor is None else monitor(model)
    model.train()
    began = time.perf_counter() - spent
    progress = tqdm(total=training.steps, initial=first, desc=name or folder.name, unit="step", disable=None)
    with open(folder / LOG, "a") as log, progress:
        for step in range(first, training.steps):
            rng = np.random.default_rng((training.seed, step))
            windows, asked = corpus.batch(rng, n=training.batch_size, length=training.length + 1)
            batch = torch.from_numpy(windows).long()
            recurrences = model.n_recurrences
            if training.recurrences == "uniform" and config.looped:
                recurrences = int(rng.integers(1, 2 * recurrences + 1))
            seeds = rng.integers(0, 2**62, size=training.batch_size).tolist()
            batch = batch.to(device)
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step)
            logits = model(batch[:, :-1], n_recurrences=recurrences, seeds=seeds)
            loss = F.cross_entropy(logits.flatten(0, 1), _targets(batch, asked).flatten(), ignore_index=_NOT_ASKED)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done = step + 1
            if watch is not None:
                watch(done)
            progress.update()
            if done % training.log_every == 0 or done == training.steps:
                line = {"step": done, "loss": loss.item(), "recurrences": recurrences,
                        "learning_rate": training.rate(step), "bytes": done * training.batch_size * training.length}
                if not math.isfinite(line["loss"]):
                    raise FloatingPointError(f"the loss is {line['loss']} at step {done}: the training diverged. "
                                             "Lower learning_rate or change the norms.")
                if done % training.evaluate_every == 0 or done == training.steps:
                    line["held_out_loss"] = held_out_loss(model, corpus, length=training.length)
                    progress.set_postfix(held_out=f"{line['held_out_loss']:.3f}")
                line["seconds"] = round(time.perf_counter() - began, 2)
                log.write(json.dumps(line) + "\n")
            if done % training.checkpoint_every == 0 and done < training.steps:
                log.flush()
                os.fsync(log.fileno())
                state = {"settings": json.dumps(settings, sort_keys=True), "model": model.state_dict(),
                         "optimizer": optimizer.state_dict(), "step": done,
                         "seconds": time.perf_counter() - began, "log_size": log.tell()}
                _write_atomically(folder / CHECKPOINT, functools.partial(torch.save, state))
    tested = (1, 2, 4, 8, 32, 128) if config.looped else (1,)
    record = {"name": name or folder.name, **{k: settings[k] for k in ("training", "corpus")},
              "held_out_loss": {str(r): round(held_out_loss(model, corpus, n_recurrences=r, length=training.length), 4)
                                for r in tested},
              **({} if isinstance(corpus, Corpus) else
                 {"accuracy": accuracies(model, corpus, [r for r in tested if r <= _MOST_ASKED])}),
              "seconds": round(time.perf_counter() - began, 1), "torch": torch.__version__,
              "python": platform.python_version(), "device": device, "threads": torch.get_num_threads()}
    save_model(model, folder, record=record)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return model.cpu().eval()
