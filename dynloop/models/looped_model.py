"""The protocol behind which every looped-model family stands."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dynloop.models.unembedding import Unembedding

MASKS, FORWARDS, READS = ("honoured", "ignored"), ("recurrences", "decoding"), ("output", "input")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile(module)`, or the module itself."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


def arguments_of(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward pass, in order; none where Python cannot tell."""
    try:
        return list(inspect.signature(module.forward).parameters)
    except (ValueError, TypeError):  # a scripted module
        return []


def first_state(value: Any) -> torch.Tensor | None:
    """The first tensor of floating-point numbers in what a call took or gave: tensor, tuple, mapping, dataclass."""
    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((found for part in value if (found := first_state(part)) is not None), None)
    return None


@dataclasses.dataclass(frozen=True)
class StatePoint:
    """One place in a recurrence where a state is read.

    Attributes:
        modules: the module whose call is read; or, where the recurrences are tied copies, copy r for recurrence r.
        stack: name of the part of the recurrence, such as "block", or "L" and "H" of two-timescale models.
        reads: "output" or "input" of the call.
        key: which part of it: a place in the tuple, a name in the mapping or dataclass, the name or place of an
            argument. By default the first tensor of floating-point numbers.
    """

    modules: tuple[nn.Module, ...]
    stack: str = "block"
    reads: str = "output"
    key: int | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.modules, tuple) or not self.modules or \
                not all(isinstance(module, nn.Module) for module in self.modules):
            raise ValueError(f"a state point needs a tuple of torch modules, (module,) for one that is called in every "
                             f"recurrence; got {self.modules!r}.")
        if self.reads not in READS:
            raise ValueError(f"reads must be one of {', '.join(READS)}; got {self.reads!r}.")

    def state(self, value: Any, kwargs: Mapping[str, Any] | None = None) -> torch.Tensor | None:
        """The state in what the call gave, or in its arguments: `value` in order, `kwargs` by name."""
        try:
            if self.key is None:
                found = first_state(value)
                return first_state(kwargs) if found is None else found
            if kwargs is not None and isinstance(self.key, str):
                return first_state(kwargs[self.key])
            if isinstance(value, list | tuple | Mapping):
                return first_state(value[self.key])  # type: ignore[index]
            return first_state(getattr(value, str(self.key)))
        except (KeyError, IndexError, AttributeError, TypeError):
            return None


@dataclasses.dataclass(frozen=True)
class Missing:
    """Stands where a specification has no function; calling it says so."""

    what: str
    model: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"the specification of {self.model} has no {self.what}: its states can be recorded, but it is "
                         "no map. Give hooked_block embed=, initial_state=, step= and readout=.")


@dataclasses.dataclass(frozen=True)
class LoopedModel:
    """What capture and `LoopMap` need to know of a looped model: its parts, not its code.

    One recurrence is one application of the map h <- F(h; context). `points` lists the calls that are recorded within
    one recurrence, in the order in which they happen; a module that is called several times in a recurrence (one
    network that updates two states in turn, an inner loop) stands there as often. The k-th call of a module is thereby
    in recurrence k // n, where n is how often it stands in `points`. Recording holds the calls against this order.

    Attributes:
        name: how the model is called in labels and reports.
        module: the whole model. Calls are counted only while its forward pass runs.
        points: where states are recorded. "layer" 1 is the first of them.
        state_points: the points, counted from 0, whose states side by side are the loop state itself (after the norm
            that closes the recurrence, where there is one); the last one alone unless the state is joint.
        width: features of a recorded state; the loop state has `width * len(state_points)`.
        training_recurrences: how the loop ran in training, in words.
        vocabulary: token numbers are below this.
        encode: text -> token numbers.
        embed: tokens (batch, tokens) -> the context that stays fixed while the loop runs. Row i of the context belongs
            to row i of the tokens.
        initial_state: (context, seeds=one number a prompt) -> loop state (batch, tokens, features).
        step: (loop state, context) -> the next one; one recurrence, differentiable. Where the map is not autonomous
            it takes `recurrence=`, counted from 0, too (default 0).
        readout: (loop state, context) -> logits (batch, tokens, vocabulary).
        run: (tokens, n_recurrences, initial_state) -> logits, the model's own forward pass or passes. It leaves
            nothing behind: what it sets it puts back (see `temporarily`). Call it by `logits`.
        random_start: whether `seeds` matter.
        autonomous: whether every recurrence applies the same map.
        causal: whether the state of a token depends on no later token.
        mask: "honoured" if padded batches give the same states as single prompts, else "ignored". Recording never
            pads; this is for those who run the model themselves.
        forwards: what several forward passes in one `run` are: "recurrences" (an outer loop that goes on, as in
            adaptive computation time) or "decoding" (one a generated token).
        generate: (tokens, n_recurrences, initial_state, n_new_tokens) -> tokens (batch, tokens + n_new_tokens), one
            forward pass a new token, with the model's cache; None if it does not generate.
        ragged: whether the loop may end before `n_recurrences`.
        most_recurrences: how many recurrences it can run; None if any number.
        multiple: the number of recurrences must be a multiple of this.
        n_tokens: the only length of a prompt that the model takes; None if any.
        prefix: states that the model puts before those of the prompt's tokens.
        padding: the token that pads, where it means nothing else; prompts that begin or end with it are refused.
        layers: the transformer layers of each part of the model, "prelude", "block" and "coda", in order; empty where
            they are the modules of `points`.
        unembed: the final norm and the head alone, without coda: (state, point=None) -> logits; None if the model has
            none, or its adapter does not know it.
        dtype: that in which the loop computes, where it is not that of the weights.
        provenance: what a report should say of the model: hash, configuration, training record.
    """

    name: str
    module: nn.Module
    points: Sequence[StatePoint]
    width: int
    training_recurrences: str
    vocabulary: int
    encode: Callable[[str], list[int]]
    embed: Callable[[torch.Tensor], Any]
    initial_state: Callable[..., torch.Tensor]
    step: Callable[..., torch.Tensor]
    readout: Callable[[torch.Tensor, Any], torch.Tensor]
    run: Callable[[torch.Tensor, int, Any], torch.Tensor]
    random_start: bool
    provenance: dict[str, Any]
    state_points: Sequence[int] = (-1,)
    autonomous: bool = True
    causal: bool = True
    mask: str = "ignored"
    forwards: str = "decoding"
    generate: Callable[[torch.Tensor, int, Any, int], torch.Tensor] | None = None
    ragged: bool = False
    most_recurrences: int | None = None
    multiple: int = 1
    n_tokens: int | None = None
    prefix: int = 0
    padding: int | None = None
    dtype: torch.dtype | None = None
    layers: Mapping[str, Sequence[nn.Module]] = dataclasses.field(default_factory=dict)
    unembed: Unembedding | None = None

    def __post_init__(self) -> None:
        n_points = len(self.points)
        if not n_points or not all(isinstance(point, StatePoint) for point in self.points):
            raise ValueError(f"points of {self.name} must be a list of StatePoint with at least one.")
        if not self.state_points or not all(-n_points <= point < n_points for point in self.state_points):
            raise ValueError(f"state_points of {self.name} must be among its {n_points} points; got "
                             f"{list(self.state_points)}.")
        for name, value, known in (("mask", self.mask, MASKS), ("forwards", self.forwards, FORWARDS)):
            if value not in known:
                raise ValueError(f"{name} of {self.name} must be one of {', '.join(known)}; got {value!r}.")
        copies = {len(point.modules) for point in self.points} - {1}
        if len(copies) > 1 or (copies and any(len(point.modules) == 1 for point in self.points)):
            raise ValueError(f"the points of {self.name} have {sorted({len(p.modules) for p in self.points})} copies; "
                             "where recurrences are tied copies, every point needs one module a recurrence.")
        if copies:
            object.__setattr__(self, "most_recurrences", min(copies.pop(), self.most_recurrences or 2**31))

    @property
    def is_map(self) -> bool:
        """Whether the loop can be stepped by hand; if not, its states can only be recorded."""
        return not any(isinstance(part, Missing) for part in (self.embed, self.initial_state, self.step))

    def check_recurrences(self, n_recurrences: int) -> None:
        """Refuse a number of recurrences that the model cannot run.

        Raises:
            ValueError: what it can run.
        """
        if n_recurrences % self.multiple:
            raise ValueError(f"{self.name} runs a multiple of {self.multiple} recurrences; got n_recurrences="
                             f"{n_recurrences}.")
        if self.most_recurrences is not None and n_recurrences > self.most_recurrences:
            raise ValueError(f"{self.name} has {self.most_recurrences} recurrences at most; got n_recurrences="
                             f"{n_recurrences}. Pass n_recurrences={self.most_recurrences}.")

    def logits(self, tokens: torch.Tensor, n_recurrences: int, state: Any) -> torch.Tensor:
        """What `run` gives, if it gives what it should.

        Raises:
            ValueError: it does not, with what came.
        """
        output = self.run(tokens, n_recurrences, state)
        if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != len(tokens):
            came = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else \
                f"{type(output).__name__}" + (f" with {', '.join(map(str, output))}" if isinstance(output, Mapping)
                                              else "")
            raise ValueError(f"`run` of {self.name} gave {came} for {len(tokens)} prompts; logits (prompts, tokens, "
                             "vocabulary) are needed. Return that tensor alone, such as model(tokens).logits.")
        return output

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        return _weight(self.module).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype in which the loop computes: `dtype`, or that of autocast where it is on, or that of the weights."""
        weight = _weight(self.module)
        if torch.is_autocast_enabled(weight.device.type):
            return torch.get_autocast_dtype(weight.device.type)
        return weight.dtype if self.dtype is None else self.dtype

    @property
    def state_width(self) -> int:
        """Features of the loop state."""
        return self.width * len(self.state_points)


def _weight(module: nn.Module) -> torch.Tensor:
    for held in (module.parameters(), module.buffers()):
        for tensor in held:
            if tensor.is_floating_point():
                return tensor
    return torch.empty(0)


def parameter_identity(module: nn.Module) -> tuple[int, ...]:
    """What two modules have in common when they are tied copies: the matrices themselves, whatever they are called.

    Vectors are left out: copies often keep norms and biases of their own.
    """
    return tuple(id(weight) for _, weight in module.named_parameters() if weight.ndim >= 2)


@contextlib.contextmanager
def temporarily(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes of `owner`, such as the number of loops in a configuration, and put back what was there.

    What the instance itself did not have is removed.
    """
    absent = object()
    was = {name: getattr(owner, name, absent) for name in values}
    own = {name for name in values if name in vars(owner)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in was.items():
            if name in vars(owner) and name not in own:
                delattr(owner, name)
            elif value is not absent:
                setattr(owner, name, value)


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate `module` eagerly and without gradients; restore its training modes, its buffers, every random state.

    Compiled modules run their Python code: hooks inside a graph that was compiled without them would never be called.
    """
    was = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    python, numpy = random.getstate(), np.random.get_state()
    cuda = sorted({tensor.device.index for tensor in module.parameters() if tensor.device.type == "cuda"})
    try:
        for part in was:
            part.training = False  # not eval(): modules that merge weights in it would come back changed
        with torch.no_grad(), torch.random.fork_rng(devices=cuda), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, training in was.items():
            part.training = training
        with torch.no_grad():
            for buffer, kept in buffers:
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)
        random.setstate(python)
        np.random.set_state(numpy)
