"""What does the loop of a model do while the model is trained?"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from dynloop.models import LoopedModel, load
from dynloop.monitoring.bystander import bare, bystander
from dynloop.monitoring.log import FILE, FORMATS, SCHEMA, JsonLines, TensorBoard
from dynloop.monitoring.probe import ORBITS, Numbers, Probe, synchronised
from dynloop.monitoring.task_probe import TaskProbe
from dynloop.nano.task import Task
from dynloop.recording.prompts import encode_prompts
from dynloop.settings import check_number, check_whole
from dynloop.version import __version__

ON_ERROR = ("log", "raise")
_T = TypeVar("_T")


class LoopMonitor:
    """Measure the loop of a model in training on a fixed batch, and log the numbers; the training is not touched.

    In a training loop::

        monitor = LoopMonitor(model, probe=tokens, log="runs/x")
        for step in range(...):
            ...
            optimizer.step()
            monitor.step(step)

    Losses are those of a run without the monitor, bit for bit: weights, gradients, buffers, training modes, attributes
    of modules, hooks, autocast's cache and all random states (torch, CUDA, NumPy, Python, generators that modules hold)
    are what they were, wherever in the loop it is called.

    Each record holds, of the probe's orbits under `n_recurrences` applications of the block:

    * `contraction_rate`, the median over the orbits that have one, and `precision_floor`, the median of their relative
      floors (both as in `dynloop.contraction_rate`);
    * `share_not_converged`, of all orbits: not at rest (`dynloop.distance_to_limit`, `tolerance`), or not finite;
    * `state_norm` ||x_R|| and `relative_step` ||x_R - x_(R-1)|| / ||x_R||, medians;
    * `spectral_radius`, `spectral_radius_largest`: median and maximum over the prompts of the modulus of the leading
      eigenvalue of the Jacobian of the sequence map at its last state, in float32 (float64 of models in float64), by
      Arnoldi's method with at most 16 vectors and 32 products, to 2 %, begun where the last call ended;
    * `attention_distance`, `attention_distance_largest`: ||A_R - A_(R-1)||_F of the attention maps of the last two
      recurrences, mean and maximum over maps;
    * with `task`, of the same questions every time: `accuracy_SPLIT`, the share of right answers after
      `task_recurrences`; `clustering_SPLIT`, how much closer by cosine the loop states that give the same answer lie
      than those that give different ones (`cosine_clustering`), `clustering_N_recurrences` over all splits after N
      recurrences, `clustering_partial_results` of the states that stand for a result on the way (the entity between two
      facts, a running sum), each context once; and `..._null`, below which 95 % of shuffles of the entities stay;
    * `outcomes`: orbits (of the radius: prompts) by outcome, for every analyzer: a number that nothing has is null;
    * `seconds` that it took, `step_seconds` of training per step since the record before, `overhead` (all of the
      monitor's time after its set-up over that of the training) and `time` (Unix).

    Args:
        model: what is trained: a module of a known family, in `torch.compile`, `DataParallel` or
            `DistributedDataParallel` or not, or a `LoopedModel` (of any other module: `dynloop.hooked_block`).
        probe: prompts of one length: token numbers (prompts, tokens), or texts where the model can encode them. Few:
            4 prompts of 32 tokens tell most.
        every: steps between measurements, at those that are multiples of it; or "auto": whenever the time that they
            take, this one included, is below `overhead` of the training's so far.
        overhead: that share.
        log: folder, or file that ends in ".jsonl", for JSON lines (appended to); None writes nothing.
        format: "jsonl", "tensorboard" (needs `dynloop[tensorboard]` and a folder) or a list of both.
        n_recurrences: applications of the block; by default 32, or the most that the model can run.
        positions: of the tokens whose orbits are fitted; by default evenly spaced, up to 64 orbits in all.
        tolerance: for `share_not_converged`.
        attention: take attention distances. True, or dotted paths of flash-attention functions; by default where
            attention can be seen.
        spectral_radius: take it. By default where the model is a map whose derivative can be had.
        autocast: dtype of autocast in which the training runs the model, if it does; by default what is on around the
            call.
        task: of `dynloop.nano.tasks`, whose questions are asked.
        task_questions: of each split, at most.
        task_recurrences: after which answers are read out; by default those of the model's own training where it says
            so (`n_recurrences`), or `n_recurrences`.
        on_error: "log": an error while measuring is written to the log, once for each sentence, and the training goes
            on; "raise". Errors at the making of a monitor are always raised.

    Attributes:
        last: the last record; empty before the first.
        overhead: share of the training's time so far.
        setup_seconds: what making it took, with a first measurement (in the log's "run" record, `at_start`).
        left_out: what is not measured, and why.

    Raises:
        TypeError: no module.
        ValueError: settings, a model of no known family, prompts of several lengths, sharded weights.
        FileExistsError: the file is something else.

    Misleads:
        In low precision the rate is that before the floor; the spectral radius is that of the map in float32. On a few
        prompts all numbers are those of these prompts. With "auto" the steps at which it measures depend on the clock
        (the training does not); give a number where two logs shall have the same steps. Its first measurement waits
        until the training has earned it: a run shorter than (seconds of one measurement) / `overhead` has none but
        `at_start`. Of several processes the first alone measures, while the others wait for it at their next exchange
        of gradients. Hooks that others have set on the model see the probe's runs, too. What the model's code changes
        outside of its modules (a global counter, a file, the inside of an object of a class of its own) stays changed.
        The copy of the weights for the radius needs
        as much memory as they do, in float32.

    Source:
        Own; the list of monitors follows Geiping et al. 2025 (arXiv 2502.05171), whose code logs residuals and norms of
        the states in training.

    Example:
        >>> import torch
        >>> from dynloop.monitoring import LoopMonitor
        >>> from dynloop.nano import NanoConfig, NanoModel
        >>> model = NanoModel(NanoConfig(width=16, n_heads=2))
        >>> monitor = LoopMonitor(model, [list(b"import os")], every=100, log=None)
        >>> monitor.step(99), 0 < monitor.step(100)["spectral_radius"] < 2
        (None, True)
    """

    def __init__(self, model: LoopedModel | nn.Module, probe: Any, *, every: int | str = "auto",
                 overhead: float = 0.01, log: str | Path | None = None, format: str | Sequence[str] = "jsonl",
                 n_recurrences: int | None = None, positions: Sequence[int] | None = None, tolerance: float = 1e-3,
                 attention: bool | Sequence[str] | None = None, spectral_radius: bool | None = None,
                 task: Task | None = None, task_questions: int = 64, task_recurrences: int | None = None,
                 autocast: torch.dtype | None = None, on_error: str = "log") -> None:
        began = time.perf_counter()
        if every != "auto":
            check_whole("every", every, 1, "a whole number of at least 1, or 'auto' (the default)")
        check_number("overhead", overhead, lambda v: 0 < v <= 1, "above 0 and at most 1 (the default is 0.01)")
        check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-3)")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}; got {on_error!r}. Choose one of these.")
        self._every, self._share, self._on_error = every, float(overhead), on_error
        self.last: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self._said: set[str] = set()
        self._calls = self._errors = 0
        self._training = self._spent = self._cost = 0.0
        self._at: int | None = None  # the step before
        self._since = (0, 0.0)  # calls and seconds of training at the last record
        self._silent = not _first_process()
        self._writers: list[JsonLines | TensorBoard] = []
        if self._silent:
            self.setup_seconds = 0.0
            return
        self._device, self._probe = self._prepared(model, probe, n_recurrences, positions, tolerance, autocast)
        self._task = self._asked(task, task_questions, task_recurrences, autocast)
        self._writers = _writers(log, format)
        at_start = self._first(attention, spectral_radius)
        self._cost = self._timed(lambda: self._measure(self._note))[1]  # without what is only done once
        self.setup_seconds = time.perf_counter() - began
        looped = self._probe.looped
        self._write({
            "kind": "run", "schema": SCHEMA, "time": time.time(), "model": looped.name, "family":
            looped.provenance.get("family"), "prompts": len(self._probe.prompts), "tokens": len(self._probe.prompts[0]),
            "probe_sha256": hashlib.sha256(json.dumps(self._probe.prompts).encode()).hexdigest(),
            "positions": list(self._probe.positions), "n_recurrences": self._probe.n_recurrences, "every": every,
            "interval": "at multiples of `every`" if every != "auto" else
            f"whenever the time that measurements take is below {100 * overhead:g} % of the training's so far",
            "task": None if task is None or self._task is None else
            {**task.describe(), "questions": len(self._task.questions), "recurrences": self._task.n_recurrences},
            "overhead_allowed": self._share, "tolerance": float(tolerance), "left_out": self.left_out,
            "dtype": str(looped.compute_dtype if autocast is None else autocast).removeprefix("torch."),
            "setup_seconds": self.setup_seconds, "measurement_seconds": self._cost, "at_start": at_start,
            "versions": {"dynloop": __version__, "torch": torch.__version__}})
        self._left = time.perf_counter()

    @staticmethod
    def _prepared(model: Any, probe: Any, n_recurrences: int | None, positions: Sequence[int] | None, tolerance: float,
                  autocast: torch.dtype | None) -> tuple[torch.device, Probe]:
        if not isinstance(model, nn.Module | LoopedModel):
            raise TypeError(f"model must be the torch module that is trained, or a LoopedModel of it; got "
                            f"{type(model).__name__}.")
        module = bare(model if isinstance(model, nn.Module) else model.module)
        if isinstance(model, nn.Module):
            with bystander(module, None):
                model = load(module)
        looped: LoopedModel = model
        if autocast is not None and not (isinstance(autocast, torch.dtype) and autocast.is_floating_point):
            raise ValueError(f"autocast must be a dtype, such as torch.bfloat16, or None; got {autocast!r}.")
        prompts = encode_prompts(looped, probe)
        if len({len(prompt) for prompt in prompts}) != 1:
            raise ValueError(f"the probe's prompts must have one length; got {sorted({len(p) for p in prompts})} "
                             "tokens. Cut them to the shortest.")
        most = looped.most_recurrences
        if n_recurrences is None:
            n_recurrences = max(looped.multiple, 32 // looped.multiple * looped.multiple)
            n_recurrences = n_recurrences if most is None else min(n_recurrences, most)
        check_whole("n_recurrences", n_recurrences, 2, "a whole number of at least 2 (the default is 32)")
        if n_recurrences % looped.multiple or (most is not None and n_recurrences > most):
            raise ValueError(f"{looped.name} runs a multiple of {looped.multiple} recurrences"
                             + ("" if most is None else f", {most} at most") + f"; got n_recurrences={n_recurrences}.")
        length = len(prompts[0])
        if positions is None:
            n = min(length, max(1, ORBITS // len(prompts)))
            positions = np.unique(np.linspace(length - 1, 0, n).round().astype(int)).tolist()
        elif len(positions) == 0 or not all(isinstance(p, int | np.integer) and not isinstance(p, bool)
                                            and -length <= p < length for p in positions):
            raise ValueError(f"positions must be among 0 to {length - 1}, or negative ones from the end; got "
                             f"{positions!r}.")
        positions = sorted({int(p) % length for p in positions})
        return looped.device, Probe(looped, prompts, n_recurrences=n_recurrences, positions=positions,
                                    tolerance=float(tolerance), autocast=autocast)

    def _asked(self, task: Task | None, n: int, recurrences: int | None,
               autocast: torch.dtype | None) -> TaskProbe | None:
        check_whole("task_questions", n, 2, "a whole number of at least 2 questions a split (the default is 64)")
        if task is None:
            if recurrences is not None:
                raise ValueError("task_recurrences goes with task=. Leave it out, or give a task.")
            return None
        if not isinstance(task, Task):
            raise ValueError(f"task must be one of dynloop.nano.tasks, such as make_task('parity'); got {task!r}.")
        looped = self._probe.looped
        if recurrences is None:
            own = getattr(looped.module, "n_recurrences", None)
            recurrences = own if isinstance(own, int) else self._probe.n_recurrences
        check_whole("task_recurrences", recurrences, 1, "a whole number of at least 1")
        return TaskProbe(looped, task, n=n, n_recurrences=recurrences, autocast=autocast)

    def _measure(self, failed: Callable[[str, Exception], None]) -> Numbers:
        numbers = self._probe.measure(failed)
        if self._task is not None:
            try:
                numbers |= self._task.measure()
            except Exception as error:  # the other numbers shall not be lost with it
                failed("task", error)
        return numbers

    def _first(self, attention: bool | Sequence[str] | None, spectral_radius: bool | None) -> Numbers:
        """Find out what can be measured; loads and compiles what the later measurements need."""
        probe, looped = self._probe, self._probe.looped
        if attention is not False:
            try:
                probe.watch_attention(() if attention in (None, True) else attention)  # type: ignore[arg-type]
            except (ValueError, RuntimeError) as error:
                if attention is not None:
                    raise
                self.left_out["attention"] = str(error)
        why = "" if looped.is_map and looped.autonomous else \
            f"{looped.name} is no map that can be stepped" if not looped.is_map else \
            f"{looped.name} applies another map at every recurrence"
        if spectral_radius and why:
            raise ValueError(f"spectral_radius: {why}. Leave it out.")
        probe.radius = spectral_radius is not False and not why
        if why:
            self.left_out["spectral_radius"] = why

        def failed(part: str, error: Exception) -> None:
            if spectral_radius:
                raise error
            self.left_out["spectral_radius"], probe.radius = _sentence(error), False

        probe.compile()
        numbers = probe.measure(failed)
        return numbers if self._task is None else numbers | self._task.measure()

    @property
    def overhead(self) -> float:
        """Seconds that measuring took since the set-up, over those of the training; 0 before the training began."""
        return self._spent / self._training if self._training > 0 else 0.0

    def step(self, step: int | None = None) -> dict[str, Any] | None:
        """To be called once a training step, after the optimizer's; measures if it is time to.

        Args:
            step: number of the step; by default the number of calls, counted from 1.

        Returns:
            The record, if one was made.
        """
        if self._silent:
            return None
        arrived = time.perf_counter()
        self._training += arrived - self._left
        self._calls += 1
        step = self._calls if step is None else int(step)
        record = None
        try:
            if self._due(step):
                record = self._measured(step)
        finally:
            self._left = time.perf_counter()
            self._spent += self._left - arrived
        return record

    def _due(self, step: int) -> bool:
        if isinstance(self._every, str):
            return self._spent + self._cost <= self._share * self._training
        before, self._at = self._at, step
        # steps may be skipped, and one of several parts be reported several times
        passed = before is not None and step // self._every > before // self._every
        return step != before and (step % self._every == 0 or passed)

    def measure(self, step: int) -> dict[str, Any]:
        """Measure and log now, whatever the interval; errors are raised."""
        if self._silent:
            return {}
        arrived = time.perf_counter()
        self._training += arrived - self._left
        try:
            return self._recorded(int(step))
        finally:
            self._left = time.perf_counter()
            self._spent += self._left - arrived

    def _measured(self, step: int) -> dict[str, Any] | None:
        began = time.perf_counter()
        try:
            return self._recorded(step)
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._cost = max(self._cost, time.perf_counter() - began)
            self._note(f"step {step}", error, step)
            return None

    def _recorded(self, step: int) -> dict[str, Any]:
        def failed(part: str, error: Exception) -> None:
            if self._on_error == "raise":
                raise error
            self._note(part, error, step)

        numbers, took = self._timed(lambda: self._measure(failed))
        self._cost = max(self._cost, took)  # the next may take as long: then the overhead is kept all the same
        calls, seconds = self._since
        record = {"kind": "step", "step": step, **numbers, "seconds": took,
                  "step_seconds": (self._training - seconds) / max(1, self._calls - calls),
                  "overhead": (self._spent + took) / self._training if self._training > 0 else np.nan,
                  "time": time.time()}
        self._since = self._calls, self._training
        self.last = record
        self._write(record)
        return record

    def _timed(self, work: Callable[[], _T]) -> tuple[_T, float]:
        synchronised(self._device)
        began = time.perf_counter()
        done = work()
        synchronised(self._device)
        return done, time.perf_counter() - began

    def _note(self, part: str, error: Exception, step: int | None = None) -> None:
        """Say once what went wrong."""
        sentence = _sentence(error)
        self._errors += 1
        if sentence not in self._said:
            self._said.add(sentence)
            self._write({"kind": "error", "step": step, "time": time.time(), "where": part, "error": sentence})

    def _write(self, record: dict[str, Any]) -> None:
        for writer in self._writers:
            try:
                writer.write(record)
            except OSError as error:
                if self._on_error == "raise" or record["kind"] == "run":
                    raise
                if (sentence := _sentence(error)) not in self._said:
                    self._said.add(sentence)
                    warnings.warn(f"LoopMonitor cannot write its log, and the training goes on: {sentence}",
                                  RuntimeWarning, stacklevel=4)

    def close(self) -> None:
        """Close TensorBoard's file; JSON lines are whole after every record."""
        for writer in self._writers:
            if isinstance(writer, TensorBoard):
                writer.close()


def _first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _writers(log: str | Path | None, format: str | Sequence[str]) -> list[JsonLines | TensorBoard]:
    wanted = [format] if isinstance(format, str) else list(format)
    if not wanted or not set(wanted) <= set(FORMATS):
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, or a list of these; got {format!r}.")
    if log is None:
        if "tensorboard" in wanted:
            raise ValueError("format='tensorboard' needs a folder: say log='runs/x'.")
        return []
    path = Path(log)
    folder, file = (path.parent, path) if path.suffix == ".jsonl" else (path, path / FILE)
    return [JsonLines(file) if name == "jsonl" else TensorBoard(folder) for name in dict.fromkeys(wanted)]
