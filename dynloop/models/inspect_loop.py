"""Find the loop of a model that nobody has described yet."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from dynloop.models.looped_model import first_state, parameter_identity, undisturbed, unwrapped


@dataclasses.dataclass(frozen=True)
class LoopInspection:
    """What `inspect_model` found.

    Attributes:
        points: paths of what one recurrence calls, in order; a tuple of paths for tied copies.
        calls: path -> calls at either number of loops, for every module whose count grew (outermost or not).
        inside: path of a point -> paths of what its call calls at once.
        widths: path -> features of its output; None where it gives no tensor.
        steady: paths of outermost modules whose calls did not grow: prelude, coda.
        forwards: forward passes of the whole model at either number of loops; they grow where an outer loop calls it.
        loops: the two numbers of loops.
        loop_argument: what set them, if known.
        recursive: paths of points that call themselves: the output of each call is that of the last one.
    """

    points: tuple[str | tuple[str, ...], ...]
    calls: dict[str, tuple[int, int]]
    inside: dict[str, tuple[str, ...]]
    widths: dict[str, int | None]
    steady: tuple[str, ...]
    forwards: tuple[int, int]
    loops: tuple[int, int]
    loop_argument: str | None = None
    recursive: tuple[str, ...] = ()

    @property
    def specification(self) -> str:
        """Python text to start from. Points of another width than most are put aside as comments."""
        single = [point for point in self.points if isinstance(point, str)]
        common = statistics.mode([self.widths.get(point) for point in single]) if single else None
        lines = []
        for point in self.points:
            if not isinstance(point, str):
                lines.append(f"    {point!r},  # tied copies: one path a recurrence")
            elif point in self.recursive:
                lines.append(f"    '{point}:input',  # it calls itself: what its calls give comes from the last one")
            elif self.widths.get(point) == common:
                lines.append(f"    {point!r},  # width {common}")
            else:
                lines.append(f"    # {point!r} has width {self.widths.get(point)}: no state")
        more = "" if self.loop_argument is None else f", loops={self.loop_argument!r}"
        if self.forwards[1] > self.forwards[0] or (single and self.loop_argument is None):
            more = ", run=lambda tokens, n, state: ..."  # that nobody can guess
        if self.forwards[1] > self.forwards[0]:
            more += ", forwards='recurrences'"
        return "\n".join(["looped = dynloop.models.hooked_block(model, [", *lines, f"]{more})",
                          "# to step it, add embed=, initial_state=, step= and readout=, then verify(looped)"])

    def __str__(self) -> str:
        lines = [f"calls at {self.loops[0]} and at {self.loops[1]} loops:"]
        for point in dict.fromkeys(point for point in self.points if isinstance(point, str)):
            lines.append("  {}: {} -> {}".format(point, *self.calls[point]))
            lines += ["    {}: {} -> {}".format(path, *self.calls[path]) for path in self.inside.get(point, ())]
        if self.forwards[1] > self.forwards[0]:
            lines.append("the model's own forward pass: {} -> {}: an outer loop".format(*self.forwards))
        if self.steady:
            lines.append("called as often at either (prelude, coda, ...): " + ", ".join(self.steady))
        return "\n".join([*lines, "", self.specification])


@dataclasses.dataclass
class _Trace:
    order: list[str]  # paths of the calls; "" is the whole model
    depth: dict[str, set[str]]  # path -> paths of the calls that it was made in
    caller: dict[str, str]  # path -> path of the innermost of them, the first time
    widths: dict[str, int | None]


@contextlib.contextmanager
def _tracing(root: nn.Module) -> Iterator[_Trace]:
    """The calls of every module below `root`, by its first path, while a forward pass of `root` runs."""
    trace, stack, handles = _Trace([], {}, {}, {}), list[str](), []
    paths: dict[nn.Module, str] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        paths.setdefault(unwrapped(module), path.replace("._orig_mod", "").removeprefix("_orig_mod."))

    def before(module: nn.Module, *_: Any) -> None:
        path = paths[module]
        if stack or not path:
            trace.order.append(path)
            trace.depth.setdefault(path, set()).update(stack)
            trace.caller.setdefault(path, stack[-1] if stack else "")
            stack.append(path)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if stack and stack[-1] == paths[module]:
            stack.pop()
            state = first_state(output)
            trace.widths[paths[module]] = None if state is None or not state.ndim else state.shape[-1]

    try:
        for module in paths:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _one_recurrence(order: list[str], wanted: dict[str, int]) -> list[str]:
    """The stretch of calls that makes one recurrence: it holds every path as often as it must and is repeated next."""
    calls = [path for path in order if path in wanted]
    length = sum(wanted.values())
    for begin in range(len(calls) - length + 1):
        part = calls[begin:begin + length]
        if all(part.count(path) == n for path, n in wanted.items()) and (
                calls[begin + length:begin + 2 * length] == part or begin + length == len(calls)):
            return part
    return calls[-length:]


def inspect_model(module: nn.Module, run_at: Callable[[int], Any], *, loops: tuple[int, int] = (2, 3),
                  loop_argument: str | None = None) -> LoopInspection:
    """Find the loop: run the model at two numbers of loops and see which modules are called more often.

    The loop consists of the outermost modules whose calls grow with the number of loops, in the order of their calls.
    Where none grows, modules that share their matrices are taken for tied copies, one a recurrence.

    Args:
        module: the whole model, compiled or not.
        run_at: n -> anything; runs the model's forward pass once with n loops.
        loops: the two numbers, the smaller first.
        loop_argument: what sets the number of loops, to be written into the specification: see `hooked_block`.

    Returns:
        What was found; `print` it for a specification to start from.

    Misleads: only calls of modules are seen. A norm that is a function, and a state that is made between two calls
        (z_L + z_H), is not; the state that closes a recurrence may lie behind the last point. Adapters and norms inside
        the loop are listed as points too: leave out those that give no state.

    Source: the counting is that of a profiler; sharing by parameter identity as in Mixture-of-Recursions checkpoints
        (Bae et al. 2025).

    Raises:
        ValueError: nothing is called more often, and nothing is shared.

    Example:
        >>> import torch
        >>> from dynloop.models import inspect_model
        >>> from dynloop.nano import NanoConfig, NanoModel
        >>> model = NanoModel(NanoConfig(width=16, n_heads=2))
        >>> tokens = torch.zeros(1, 3, dtype=torch.long)
        >>> inspect_model(model, lambda n: model(tokens, n_recurrences=n)).points
        ('adapter', 'block.0', 'block.1', 'loop_norm')
    """
    first, second = loops
    if not 1 <= first < second:
        raise ValueError(f"loops must be two growing whole numbers from 1, such as (2, 3); got {loops!r}.")
    root, traces = unwrapped(module), []
    with undisturbed(module):
        for n in loops:
            with _tracing(root) as trace:
                run_at(n)
            traces.append(trace)
    if not traces[1].order:
        raise ValueError("the model's forward pass was never called: run_at must call the model itself, not a part "
                         "of it.")
    counts = {path: (traces[0].order.count(path), traces[1].order.count(path))
              for path in dict.fromkeys(traces[1].order) if path}
    forwards = traces[0].order.count(""), traces[1].order.count("")
    grown = {path: both for path, both in counts.items() if both[1] > both[0]}
    # where an outer loop calls the whole model, what every pass calls equally often is no loop within it
    within = {path: both for path, both in grown.items() if both[0] * forwards[1] != both[1] * forwards[0]}
    grown = within or grown
    outermost = [path for path in grown if not (traces[1].depth[path] - {path}) & set(grown)]
    if grown and not outermost:
        raise ValueError(f"the modules that are called more often call each other in a ring ({', '.join(grown)}): none "
                         "of them holds the loop. Describe it by hand with hooked_block.")
    inside = {path: tuple(inner for inner, caller in traces[1].caller.items() if caller == path) for path in outermost}
    steady = tuple(path for path in counts if path not in grown and traces[1].depth[path] <= {""}
                   and not any(other.startswith(path + ".") for other in grown))
    points: tuple[str | tuple[str, ...], ...]
    if grown:
        wanted = {path: max(1, round((grown[path][1] - grown[path][0]) / (second - first))) for path in outermost}
        points = tuple(_one_recurrence(traces[1].order, wanted))
    else:
        points = _tied(root, traces[1])
        if not points:
            raise ValueError(f"no module was called more often at {second} loops than at {first}, and none share their "
                             "matrices: run_at does not change the number of loops, this model does not loop, or it "
                             "ended its loop early (try fewer, such as loops=(1, 2)). "
                             f"Called: {', '.join(itertools.islice(counts, 12))}.")
        steady = tuple(path for path in steady if not any(path in copies for copies in points))
    return LoopInspection(points, grown, inside, traces[1].widths, steady, forwards, (first, second), loop_argument,
                          tuple(path for path in outermost if path in traces[1].depth[path]))


def _tied(root: nn.Module, trace: _Trace) -> tuple[tuple[str, ...], ...]:
    """Outermost called modules that share all their matrices, grouped, in the order of their calls."""
    modules = dict(root.named_modules())
    groups: dict[tuple[int, ...], list[str]] = {}
    for path in dict.fromkeys(trace.order):
        identity = parameter_identity(modules[path]) if path in modules else ()
        if identity:
            groups.setdefault(identity, []).append(path)
    # a module and its only child hold the same matrices, but are no copies of one another
    tied = {identity: [p for p in paths if not trace.depth[p] & set(paths)] for identity, paths in groups.items()}
    tied = {identity: paths for identity, paths in tied.items() if len(paths) > 1}
    inner = {path for paths in tied.values() for path in paths}
    return tuple(tuple(paths) for paths in tied.values()
                 if not any(trace.depth[path] & inner for path in paths))
