"""Any torch module as a looped model, by the paths of what its loop calls."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dynloop.models.family import weights_hash
from dynloop.models.looped_model import (
    LoopedModel,
    Missing,
    StatePoint,
    arguments_of,
    first_state,
    parameter_identity,
    temporarily,
    undisturbed,
    unwrapped,
)
from dynloop.models.recorder import recording

Point = str | tuple[str, ...] | StatePoint


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, through wrappers of `torch.compile`; "" is the module itself.

    Raises:
        ValueError: nothing there, with the names there are.
    """
    here = unwrapped(module)
    for number, part in enumerate(path.split(".") if path else []):
        if part == "_orig_mod":
            continue
        found = getattr(here, part, None)
        if not isinstance(found, nn.Module):
            where = ".".join(path.split(".")[:number]) or "the model"
            raise ValueError(f"no module {path!r}: {where} has {', '.join(n for n, _ in here.named_children())}. "
                             "`dynloop inspect` lists the modules that the loop calls.")
        here = unwrapped(found)
    return here


@contextlib.contextmanager
def loop_count(module: nn.Module, loops: str | None, n: int) -> Iterator[dict[str, int]]:
    """Set the number of loops: an argument of the forward pass (yielded), or an attribute by its dotted path; None
    where nothing sets it.
    """
    if loops is None:
        yield {}
        return
    root = unwrapped(module)
    parameters = arguments_of(root)
    if loops in parameters:
        yield {loops: n}
        return
    owner: Any = root
    *path, last = loops.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    if owner is None or not hasattr(owner, last):
        raise ValueError(f"loops={loops!r} is neither an argument of the forward pass ({', '.join(parameters)}) nor "
                         f"an attribute of {type(root).__name__}. Name the one that sets the number of loops, such as "
                         "'num_steps' or 'config.total_ut_steps'.")
    own = getattr(owner, last)
    if own is not None and (isinstance(own, bool) or not isinstance(own, numbers.Integral)):
        raise ValueError(f"loops={loops!r} is {type(own).__name__}, no whole number that could say how often to loop. "
                         "Name one, such as 'num_steps' or 'config.total_ut_steps', or give hooked_block run=.")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(temporarily(owner, **{last: n}))
        except (AttributeError, TypeError) as error:  # frozen, or a property, or without a place for attributes
            raise ValueError(f"loops={loops!r} cannot be set: {type(owner).__name__} does not allow it ({error}). Give "
                             "hooked_block run=, which runs the model with n loops in another way (an argument, or a "
                             "copy of the configuration).") from error
        yield {}


def _points(module: nn.Module, points: Sequence[Point], stacks: Sequence[str] | None) -> list[StatePoint]:
    if isinstance(points, str) or not points:
        raise ValueError(f"points must be a list of paths, in the order of their calls; got {points!r}. One? [path].")
    if stacks is not None and len(stacks) != len(points):
        raise ValueError(f"stacks must name the stack of each of {len(points)} points; got {len(stacks)}.")
    found = []
    for number, point in enumerate(points):
        if isinstance(point, StatePoint):
            found.append(point)
            continue
        paths = (point,) if isinstance(point, str) else tuple(point)
        ends = [path.rpartition(":") if path.endswith((":input", ":output")) else (path, "", "output")
                for path in paths]
        if len({end for _, _, end in ends}) > 1:
            raise ValueError(f"{', '.join(paths)} read the input of some copies and the output of others, so that one "
                             "recurrence would be missing and another double. Take the same end of every copy.")
        modules = tuple(submodule(module, path) for path, _, _ in ends)
        if len({parameter_identity(copy) for copy in modules}) > 1 or (
                len(modules) > 1 and not parameter_identity(modules[0])):
            raise ValueError(f"{', '.join(paths)} are no tied copies: their matrices are not the same tensors. One "
                             "path a point for a module that is called again and again; a tuple for tied copies.")
        found.append(StatePoint(modules, "block" if stacks is None else stacks[number], ends[0][2]))
    return found


def _described(module: nn.Module, points: Sequence[StatePoint]) -> list[str]:
    """The points by their paths, for the record."""
    paths = {unwrapped(part): path for path, part in unwrapped(module).named_modules()}
    return [f"{point.stack}: {point.reads} of {', '.join(paths.get(unwrapped(part), '?') for part in point.modules)}"
            + ("" if point.key is None else f", {point.key!r}") for point in points]


def hooked_block(module: nn.Module, points: Sequence[Point], *, loops: str | None = None,
                 run: Callable[[torch.Tensor, int, Any], Any] | None = None, stacks: Sequence[str] | None = None,
                 state_points: Sequence[int] = (-1,), width: int | None = None, vocabulary: int | None = None,
                 encode: Callable[[str], list[int]] | None = None,
                 embed: Callable[[torch.Tensor], Any] | None = None,
                 initial_state: Callable[..., torch.Tensor] | None = None,
                 step: Callable[..., torch.Tensor] | None = None,
                 readout: Callable[[torch.Tensor, Any], torch.Tensor] | None = None,
                 random_start: bool = False, autonomous: bool = True, causal: bool = True, mask: str = "ignored",
                 forwards: str = "decoding",
                 generate: Callable[[torch.Tensor, int, Any, int], torch.Tensor] | None = None, ragged: bool = False,
                 most_recurrences: int | None = None, multiple: int = 1, n_tokens: int | None = None, prefix: int = 0,
                 padding: int | None = None, dtype: torch.dtype | None = None, name: str | None = None,
                 training_recurrences: str = "unknown", provenance: dict[str, Any] | None = None) -> LoopedModel:
    """A looped model of any torch module, by the paths of the modules that its loop calls.

    With `points` and `loops` (or `run`) its states can be recorded. With embed, initial_state, step and readout too it
    is a map: it can be stepped, differentiated and verified.

    Args:
        module: the whole model, compiled or not.
        points: what is called in one recurrence, in order: "path" (its output), "path:input", a tuple of the paths of
            tied copies (copy r is called in recurrence r), or a StatePoint. What is called twice stands there twice.
        loops: how to set the number of loops: an argument of the forward pass, or an attribute such as
            "config.total_ut_steps". Needed unless `run` is given or the points are tied copies.
        run: (tokens, n_recurrences, initial_state or None) -> logits, where the model's forward pass needs more than
            tokens and the number of loops.
        stacks: the stack of each point, such as ["L", "L", "H"]; all "block" by default.
        others: state_points, width, vocabulary, encode, embed, initial_state, step, readout, random_start,
            autonomous, causal, mask, forwards, generate, ragged, most_recurrences, multiple, n_tokens, prefix,
            padding, dtype, name, training_recurrences, provenance: see `LoopedModel`. The
            width is looked up by a run on two tokens, the vocabulary is that of the first embedding. `random_start`
            without `initial_state` means that the model draws its own: each prompt then runs alone, after
            `torch.manual_seed` of its seed.

    Returns:
        The specification.

    Misleads: a path to another module than the loop's gives states that look like any others. Where the model is a
        map, run `verify`.

    Raises:
        ValueError: no such module; tied copies that share no matrices; nothing that sets the number of loops.

    Example:
        >>> import torch
        >>> from dynloop.models import hooked_block
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embedding, self.block = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4)
        ...     def forward(self, tokens, n_loops=2):
        ...         h = self.embedding(tokens)
        ...         for _ in range(n_loops):
        ...             h = self.block(h)
        ...         return h
        >>> looped = hooked_block(Model(), ["block"], loops="n_loops")
        >>> looped.width, looped.vocabulary, looped.is_map
        (4, 9, False)
    """
    found = _points(module, points, stacks)
    label = name or type(unwrapped(module)).__name__
    copies = len(found[0].modules) > 1
    if run is None:
        if loops is None and not copies:
            raise ValueError("loops must say what sets the number of loops: an argument of the forward pass such as "
                             "'num_steps', or an attribute such as 'config.num_hidden_layers'. Or give run=.")

        def own(tokens: torch.Tensor, n_recurrences: int, state: Any) -> torch.Tensor:
            if state is not None and (random_start or embed is None or initial_state is None or not torch.equal(
                    state, initial_state(embed(tokens), seeds=range(len(tokens))))):
                raise ValueError(f"the forward pass of {label} starts where it always does, and was to start from "
                                 "another state. Give hooked_block run=, which puts the state in.")
            with loop_count(module, loops, n_recurrences) as argument:
                output = module(tokens, **argument)
            found = first_state(output)
            return output if found is None else found  # which `LoopedModel.logits` refuses

        run = own
    if vocabulary is None:
        vocabulary = next((part.num_embeddings for part in unwrapped(module).modules()
                           if isinstance(part, nn.Embedding)), None)
        if vocabulary is None:
            raise ValueError(f"{label} has no torch.nn.Embedding that says how many tokens there are. "
                             "Give vocabulary=.")

    def no_text(text: str) -> list[int]:
        raise ValueError(f"{label} has no encode=: give prompts as lists of token numbers.")

    missing = {what: Missing(what, label) for what in ("embed", "initial_state", "step", "readout")}
    looped = LoopedModel(
        name=label, module=module, points=found, width=width or 1, training_recurrences=training_recurrences,
        vocabulary=vocabulary, encode=encode or no_text, embed=embed or missing["embed"],
        initial_state=initial_state or missing["initial_state"], step=step or missing["step"],
        readout=readout or missing["readout"], run=run, random_start=random_start, state_points=state_points,
        autonomous=autonomous, causal=causal, mask=mask, forwards=forwards, generate=generate, ragged=ragged,
        most_recurrences=most_recurrences, multiple=multiple, n_tokens=n_tokens, prefix=prefix, padding=padding,
        dtype=dtype,
        provenance={"family": "hooked_block", "class": type(unwrapped(module)).__name__, "sha256": weights_hash(module),
                    "points": _described(module, found), "loops": loops, **(provenance or {})})
    if width is not None:
        return looped
    widths, shapes = set[int](), set[tuple[int, ...]]()
    tokens = torch.zeros(1, looped.n_tokens or 2, dtype=torch.long, device=looped.device)
    n = looped.most_recurrences if copies else min(2 * looped.multiple, looped.most_recurrences or 2**31)

    def see(forward: int, recurrence: int, point: int, state: torch.Tensor) -> None:
        widths.add(state.shape[-1])
        shapes.add(tuple(state.shape[:-1]))

    with undisturbed(module), recording(looped, see) as calls:
        start = looped.initial_state(looped.embed(tokens), seeds=[0]) if looped.is_map else None
        looped.logits(tokens, n or 1, start)
    calls.check(n or 1)
    if len(widths) != 1:
        raise ValueError(f"the states of {label} have {sorted(widths)} features; all points need the same width. "
                         "Choose points that see the residual stream.")
    due = (1, tokens.shape[1] + prefix)
    if tokens.shape[1] > 1 and shapes != {due}:
        raise ValueError(f"the states of {label} have shapes {sorted(shapes)} before their features where {due} is due "
                         "(prompts, tokens): tokens first, or tokens run together. Choose other points.")
    return dataclasses.replace(looped, width=widths.pop())
