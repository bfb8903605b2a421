"""A looped block, or any other rule, as a discrete map with Jacobian-vector products."""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dynloop.maps.arguments import check_tensor
from dynloop.maps.modes import Snapshot, Surroundings, same_random_numbers, uncompiled
from dynloop.models import LoopedModel
from dynloop.settings import check_whole

MapFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_NUMBERS = 2**21  # in the tangents that are pushed at once
_SMALL = 8  # numbers in a state
_KEPT = 4  # selections of contexts whose embedding is kept


class LoopMap:
    """A discrete map F: (n, *state_shape) -> (n, *state_shape); rows are independent of one another.

    `LoopMap.of` makes one from a looped model, `LoopMap.from_module` from any torch module.

    Args:
        function: (states (n, *state_shape), contexts (n,) whole numbers) -> states. Row i is mapped in context
            contexts[i]: the prompt, with all that stays fixed while the loop runs. A map without contexts ignores them.
        state_shape: shape of one state; (tokens, features) for the sequence map of a language model.
        n_contexts: contexts that there are.
        dtype, device: of the states.
        module: the undisturbed module behind the map, if any.
        causal: whether token i of the result depends on tokens up to i only (first axis of `state_shape`).
        name: what to call it.

    Example:
        >>> import torch
        >>> from dynloop.maps import LoopMap
        >>> f = LoopMap(lambda x, contexts: 0.5 * x + 1, (3,))
        >>> f(torch.zeros(2, 3, dtype=torch.float64))
        tensor([[1., 1., 1.],
                [1., 1., 1.]], dtype=torch.float64)
        >>> f.jvp(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))[1]
        tensor([[0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """

    def __init__(self, function: MapFunction, state_shape: Sequence[int], *, n_contexts: int = 1,
                 dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu",
                 module: nn.Module | None = None, causal: bool = False, name: str = "map") -> None:
        if not isinstance(state_shape, Sequence) or not state_shape or \
                not all(hasattr(n, "__index__") and n > 0 for n in state_shape):
            raise ValueError(f"state_shape must be a sequence of whole numbers above 0, such as (3,) or (tokens, "
                             f"features); got {state_shape!r}. A state that is one number has (1,).")
        self.state_shape = tuple(map(int, state_shape))
        self.function = functools.partial(self._apply, function)
        self.n_contexts, self.dtype, self.device = n_contexts, dtype, torch.device(device)
        self.module, self.causal, self.name = module, causal, name
        self.live: _LiveModel | None = None
        self._surround: Callable[[torch.Tensor, str], contextlib.AbstractContextManager] | None = None
        self._hold: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        self._tokens_are_apart = False  # until own-token tangents have been tried
        self._backwards_tried = False
        self.repeats = False  # until it has been asked twice: see `arguments.check_repeats`
        self._modes: dict[str, Surroundings] = {}

    @classmethod
    def of(cls, model: LoopedModel, tokens: torch.Tensor | Sequence[Sequence[int]], *, recurrence: int | None = None,
           dtype: torch.dtype | None = torch.float64) -> LoopMap:
        """The sequence map of a looped model: all tokens of a prompt, h <- F(h; prompt).

        The weights are copied as they are now, in `dtype`, and lent to the module while the map runs; afterwards the
        module is what it was: weights, gradients, modes, hooks, random state. States keep `dtype` through casts that
        the model's code has hard-coded, and attention is written out where derivatives are taken
        (see `dynloop.maps.modes.Surroundings`).

        Args:
            model: any looped model.
            tokens: prompts of one length, (n_contexts, tokens).
            recurrence: of a model that applies another map at every recurrence, the one to take, counted from 0; of
                other models none.
            dtype: in which the block computes. None keeps the dtype of its weights, and its casts.

        Returns:
            A map with `state_shape` (tokens, features), one context a prompt, on the device of the model.

        Raises:
            TypeError: no `LoopedModel`, or a scripted module.
            ValueError: tokens of another shape; a recurrence too many or too few; a model that draws random numbers.

        Misleads:
            A map in float64 is not the map that the model applies in bfloat16: that one rounds, and may stall, or
            repeat, where this one converges. One map must not be used from several threads.

        Example:
            >>> import torch
            >>> from dynloop.maps import LoopMap
            >>> from dynloop.models import nano
            >>> f = LoopMap.of(nano("nano-settles"), [list(b"import os")])
            >>> f
            LoopMap(nano-settles: states (9, 128), 1 context, float64)
            >>> h = f.initial_states()
            >>> for _ in range(100):
            ...     h = f(h)
            >>> bool((f(h) - h).norm() < 1e-10 * h.norm())
            True
        """
        if not isinstance(model, LoopedModel):
            raise TypeError(f"a LoopedModel is needed; got {type(model).__name__}. Put the model behind its family, "
                            "such as dynloop.models.nano(model), or use LoopMap.from_module.")
        step: Callable[..., torch.Tensor] = model.step
        if not model.autonomous:
            if recurrence is None:
                raise ValueError(f"{model.name} applies a different map at every recurrence, so that there is no "
                                 "single one to iterate. Say which one by recurrence=0, 1, ...")
            check_whole("recurrence", recurrence, 0, "a whole number of at least 0")
            step = functools.partial(step, recurrence=recurrence)
        elif recurrence is not None:
            raise ValueError(f"{model.name} applies the same map at every recurrence; got recurrence={recurrence}. "
                             "Leave it out.")
        tokens = torch.as_tensor(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape or tokens.is_floating_point():
            raise ValueError(f"tokens must be whole numbers (prompts, tokens); got {tokens.dtype} of shape "
                             f"{tuple(tokens.shape)}. One prompt? Pass tokens[None]. Prompts of several lengths need "
                             "a map each.")
        first = next(itertools.chain(model.module.parameters(), model.module.buffers()), torch.zeros(0))
        live = _LiveModel(model.name, model.module, step, lambda rows: model.embed(tokens[rows].to(first.device)),
                          dtype, first.device, tokens.shape[1], model)
        with live.running(torch.arange(1), None) as context, torch.no_grad():
            start = model.initial_state(context, seeds=[0])
        live.n_tokens = start.shape[1]  # some models put positions of their own before the prompt's
        return cls._alive(live, tuple(start.shape[1:]), len(tokens), dtype or start.dtype, model.causal)

    @classmethod
    def from_module(cls, module: nn.Module | Callable[..., torch.Tensor], state_shape: Sequence[int], *,
                    contexts: Sequence[torch.Tensor] = (), dtype: torch.dtype | None = torch.float64,
                    causal: bool = False, name: str | None = None) -> LoopMap:
        """The map of any torch module: h <- module(h, *contexts).

        Args:
            module: module or function of states (n, *state_shape) and what stays fixed, row by row. A module's weights
                are copied and lent, as in `of`; a function's own weights are used as they are.
            state_shape: shape of one state.
            contexts: tensors (n_contexts, ...) whose rows belong to the rows of the states.
            dtype: in which it computes. None: that of its weights, or of the contexts.
            causal: see `LoopMap`.
            name: by default the name of the class or function.

        Example:
            >>> import torch
            >>> from dynloop.maps import LoopMap
            >>> f = LoopMap.from_module(torch.nn.Linear(2, 2), (2,))
            >>> f(torch.zeros(1, 2)).dtype
            torch.float64
        """
        lengths = {len(c) for c in contexts}
        if len(lengths) > 1:
            raise ValueError(f"all contexts must have one row a context; got {sorted(lengths)} rows.")
        held = list(contexts)
        weights = list(itertools.chain(module.parameters(), module.buffers())) if isinstance(module, nn.Module) else []
        known = next(iter([*weights, *held]), torch.zeros(0))
        widest = dtype or next((x.dtype for x in (*weights, *held) if x.is_floating_point()), torch.float32)

        def embed(rows: torch.Tensor) -> list[torch.Tensor]:
            chosen = [c[rows.to(c.device)] for c in held]
            return [c.to(dtype) if dtype is not None and c.is_floating_point() else c for c in chosen]

        own = module if isinstance(module, nn.Module) else None
        label = str(name or getattr(module, "__name__", type(module).__name__))
        live = _LiveModel(label, own,
                          lambda states, context: module(states, *context), embed, dtype, known.device,
                          state_shape[0] if len(state_shape) == 2 else None)
        return cls._alive(live, state_shape, lengths.pop() if lengths else 1, widest, causal)

    @classmethod
    def _alive(cls, live: _LiveModel, state_shape: Sequence[int], n_contexts: int, dtype: torch.dtype,
               causal: bool) -> LoopMap:
        made = cls(live.apply, state_shape, n_contexts=n_contexts, dtype=dtype, device=live.device, module=live.module,
                   causal=causal, name=live.name)
        made.live, made._surround, made._hold = live, live.running, live.lent
        return made

    def __repr__(self) -> str:
        contexts = f"{self.n_contexts} context{'' if self.n_contexts == 1 else 's'}"
        return f"LoopMap({self.name}: states {self.state_shape}, {contexts}, {str(self.dtype).removeprefix('torch.')})"

    @property
    def dim(self) -> int:
        """Numbers in one state."""
        return int(torch.Size(self.state_shape).numel())

    def _apply(self, function: MapFunction, states: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        following = function(states.clone(), contexts)  # which may write to what it is given
        if not isinstance(following, torch.Tensor) or following.shape != states.shape:
            gave = tuple(following.shape) if isinstance(following, torch.Tensor) else type(following).__name__
            raise ValueError(f"{self.name} gave {gave} for states {tuple(states.shape)}: a map gives states of the "
                             "same shape.")
        return following

    def _contexts(self, n: int, contexts: Any) -> torch.Tensor:
        if contexts is None:
            return torch.arange(n) % self.n_contexts
        contexts = torch.as_tensor(contexts, device="cpu")
        if contexts.shape != (n,) or contexts.is_floating_point() or contexts.dtype == torch.bool or \
                (n and not 0 <= int(contexts.min()) <= int(contexts.max()) < self.n_contexts):
            raise ValueError(f"contexts must be {n} whole numbers from 0 to {self.n_contexts - 1}, one a row of the "
                             f"states; got {contexts.dtype} of shape {tuple(contexts.shape)}"
                             + (f" from {contexts.min()} to {contexts.max()}." if contexts.numel() else "."))
        return contexts.long()

    def _checked(self, states: torch.Tensor, contexts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        check_tensor("states", states)
        if states.ndim != 1 + len(self.state_shape) or tuple(states.shape[1:]) != self.state_shape:
            raise ValueError(f"{self.name} maps states (n, {', '.join(map(str, self.state_shape))}); got "
                             f"{tuple(states.shape)}. One state? Pass state[None].")
        return states.to(self.device, self.dtype), self._contexts(len(states), contexts)

    def _tangents(self, name: str, tangents: torch.Tensor, states: torch.Tensor, *, many: bool) -> torch.Tensor:
        check_tensor(name, tangents)
        if tuple(tangents.shape[many:]) != tuple(states.shape):
            wanted = ", ".join([*(["k"] if many else []), *map(str, states.shape)])
            raise ValueError(f"{name} must have shape ({wanted}), as the states have; got {tuple(tangents.shape)}.")
        return tangents.to(states)

    def _running(self, contexts: torch.Tensor, attention: str) -> contextlib.AbstractContextManager:
        if self._surround is not None:
            return self._surround(contexts, attention)
        if attention == "kernel":
            return contextlib.nullcontext()
        if attention not in self._modes:
            tokens = self.state_shape[0] if self.state_shape else None
            self._modes[attention] = Surroundings(attention=attention, tokens=tokens)
        return self._modes[attention]

    def held(self) -> contextlib.AbstractContextManager:
        """Within it, a model stays lent between the calls of this map: many small applications cost less.

        The model itself must not be used meanwhile; it is what it was afterwards. Draw random numbers from a generator
        of your own: those of torch count as drawn by the model.
        """
        return self._hold()

    def __call__(self, states: torch.Tensor, contexts: Any = None) -> torch.Tensor:
        """Next states; row i in context contexts[i], by default i modulo `n_contexts`."""
        states, contexts = self._checked(states, contexts)
        with torch.no_grad(), self._running(contexts, "kernel"):
            return self.function(states, contexts)

    def jvp(self, states: torch.Tensor, tangents: torch.Tensor,
            contexts: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Next states, and J v for every row: tangents (n, *state_shape)."""
        check_tensor("tangents", tangents)
        following, pushed = self.jvps(states, tangents[None], contexts)
        return following, pushed[0]

    def jvps(self, states: torch.Tensor, tangents: torch.Tensor,
             contexts: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Next states, and J v for k tangents a row: tangents (k, n, *state_shape), the block being applied once."""
        if self._small:
            states, contexts = self._checked(states, contexts)
            tangents = self._tangents("tangents", tangents, states, many=True)
            following, whole = self._whole(states, contexts)
            pushed = whole @ tangents.flatten(2).permute(1, 2, 0)
            return following, pushed.permute(2, 0, 1).reshape(tangents.shape)
        return self._pushed(states, tangents, contexts, "explicit")

    @property
    def _small(self) -> bool:
        """Whether a pass for each number of the state costs less than forward mode, which is slow to start."""
        return self.live is None and self._surround is None and self.dim <= _SMALL

    def _whole(self, states: torch.Tensor, contexts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Next states and Jacobians (n, dim, dim), by one pass back over `dim` copies of the rows."""
        n, dim = len(states), self.dim
        with torch.inference_mode(False), torch.enable_grad():
            copies = states.detach().repeat(dim, *[1] * len(self.state_shape)).requires_grad_()
            following = self._recorded(copies, contexts.repeat(dim))
            units = torch.eye(dim, dtype=following.dtype, device=following.device)
            rows = _back(following, copies, units[:, None].expand(-1, n, -1).reshape(following.shape))
        return following.detach()[:n], rows.reshape(dim, n, dim).transpose(0, 1)

    def _recorded(self, states: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """Next states, with what it takes to go back from them."""
        try:
            with self._running(contexts, "explicit"):
                return self.function(states, contexts)
        except RuntimeError as error:
            if not str(error).startswith("Inference tensors cannot be saved for backward"):
                raise
            raise ValueError(f"{self.name} uses weights or other tensors that were made within torch.inference_mode(), "
                             "through which nothing can be differentiated backwards. Make them outside of it (under "
                             "torch.no_grad()), or give LoopMap.from_module the module, whose weights it copies.") \
                from None

    def _pushed(self, states: torch.Tensor, tangents: torch.Tensor, contexts: Any,
                attention: str) -> tuple[torch.Tensor, torch.Tensor]:
        states, contexts = self._checked(states, contexts)
        tangents = self._tangents("tangents", tangents, states, many=True)
        with torch.no_grad(), self._running(contexts, attention):
            if len(tangents) == 1:
                following, pushed = _jvp(lambda x: self.function(x, contexts), states, tangents[0])
                return following, pushed[None]
            return torch.func.vmap(lambda v: _jvp(lambda x: self.function(x, contexts), states, v),
                                   out_dims=(None, 0))(tangents)  # type: ignore[arg-type]

    def own_token_jvps(self, states: torch.Tensor, tangents: torch.Tensor,
                       contexts: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Next states, and D v for k tangents a row, D the block diagonal of J: token i feels its own tangent alone.

        The Jacobian of a causal map is block triangular in its tokens, so that its spectrum is the union of the spectra
        of the blocks J_tt. One product with D is a product with all of them.

        Raises:
            ValueError: the map is not causal, or its tokens mix otherwise than by attention that is seen; found out on
                the first call, by a few tangents.
        """
        if not self.causal:
            raise ValueError(f"{self.name} is not causal, so that the blocks of single tokens do not give the spectrum "
                             "of its Jacobian. Use jvps; for a causal map of your own, say causal=True.")
        if not self._tokens_are_apart:
            finite = states.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
            if finite:
                i = finite[0]
                self._try_own_tokens(states[i:i + 1], self._contexts(len(states), contexts)[i:i + 1])
                self._tokens_are_apart = True
        return self._pushed(states, tangents, contexts, "own token")

    def _try_own_tokens(self, states: torch.Tensor, contexts: torch.Tensor) -> None:
        """The first token's own tangent must reach no other, and no tangent an earlier token."""
        states, contexts = self._checked(states, contexts)
        tokens = self.state_shape[0]
        first_pushed = sorted({t for t in (0, 1, tokens // 2, tokens - 1) if t < tokens})
        numbers = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        tangents = torch.stack([numbers.clone() for _ in first_pushed])
        tangents[0, :, 1:] = 0
        for row, first in enumerate(first_pushed):
            tangents[row, :, :first] = 0
        whole = self._pushed(states, tangents, contexts, "explicit")[1]
        allowed = 1e3 * torch.finfo(self.dtype).eps * whole.abs().max()
        for row, first in enumerate(first_pushed):
            if first and not whole[row, :, :first].abs().max() <= allowed:
                raise ValueError(f"{self.name} is said to be causal, but later tokens' tangents reach earlier ones. "
                                 "Make the map with causal=False, and use jvps.")
        own = self._pushed(states, tangents, contexts, "own token")[1][0]
        own[:, 0] -= whole[0, :, 0]
        if not own.abs().max() <= allowed:
            raise ValueError(f"{self.name} mixes its tokens otherwise than by attention that is seen, so that its "
                             "own-token tangents would be wrong. Load it with scaled-dot-product attention "
                             "(attn_implementation='sdpa'), or use jvps with one token's tangent at a time.")

    def vjp(self, states: torch.Tensor, cotangents: torch.Tensor,
            contexts: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Next states, and J^T w for every row: cotangents (n, *state_shape).

        Raises:
            ValueError: the block's code cuts or bends its derivative on the way back (inference mode, a gradient that
                is passed straight through); found out on the first call, by comparison with one tangent.
        """
        check_tensor("cotangents", cotangents)
        following, pulled = self.vjps(states, cotangents[None], contexts)
        return following, pulled[0]

    def vjps(self, states: torch.Tensor, cotangents: torch.Tensor,
             contexts: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Next states, and J^T w for k cotangents a row: (k, n, *state_shape), the block being applied once."""
        states, contexts = self._checked(states, contexts)
        cotangents = self._tangents("cotangents", cotangents, states, many=True)
        if not self._backwards_tried:
            self._backwards_tried = True
            try:
                self._try_backwards(states[:1], contexts[:1])
            except ValueError:
                self._backwards_tried = False
                raise
        with torch.inference_mode(False), torch.enable_grad():
            states, cotangents = _differentiable(states.detach()).requires_grad_(), _differentiable(cotangents)
            following = self._recorded(states, contexts)
            pulled = _back(following, states, cotangents[0])[None] if len(cotangents) == 1 else \
                _back(following, states, cotangents, batched=True)
        return following.detach(), pulled

    def _try_backwards(self, states: torch.Tensor, contexts: torch.Tensor) -> None:
        """Both derivatives must give the same w J v; forward mode passes what stops gradients."""
        if self.live is None or not len(states) or not states.isfinite().all():
            return
        generator = torch.Generator().manual_seed(0)
        v, w = (torch.randn(states.shape, generator=generator, dtype=torch.float64).to(states) for _ in "vw")
        try:
            pushed = self.jvp(states, v, contexts)[1]
        except (NotImplementedError, RuntimeError):  # an operation of somebody's that has a way back alone
            return
        back = self.vjps(states, w[None], contexts)[1][0]
        apart = ((pushed * w).double().sum() - (back * v).double().sum()).abs()
        if apart > torch.finfo(self.dtype).eps ** 0.5 * (pushed.double().norm() * w.double().norm()
                                                         + back.double().norm() * v.double().norm()):
            raise ValueError(f"{self.name} has another derivative backwards than forwards: its code stops or bends "
                             "gradients (inference mode, straight-through rounding). Use jvp and jvps.")

    def jacobian(self, states: torch.Tensor, contexts: Any = None, *, at_once: int | None = None) -> torch.Tensor:
        """The Jacobian of every row, (n, dim, dim): [:, i, j] is the derivative of number i by number j of the state.

        Args:
            states: (n, *state_shape).
            contexts: as in a call.
            at_once: columns that are computed at once; by default as many as fit into some 16 MB.
        """
        states, contexts = self._checked(states, contexts)
        n, dim = len(states), self.dim
        if at_once is None:
            at_once = max(1, _NUMBERS // max(1, n * dim))
        check_whole("at_once", at_once, 1, "a whole number of at least 1 column")
        if self._small:
            return self._whole(states, contexts)[1]
        out = states.new_empty(n, dim, dim)
        for first in range(0, dim, at_once):
            last = min(dim, first + at_once)
            units = states.new_zeros(last - first, 1, dim)
            units[torch.arange(last - first), 0, torch.arange(first, last)] = 1
            tangents = units.expand(-1, n, -1).reshape(last - first, *states.shape)
            columns = self.jvps(states, tangents, contexts)[1]
            out[:, :, first:last] = columns.reshape(last - first, n, dim).permute(1, 2, 0)
        return out

    def of_token(self, token: int, states: torch.Tensor, contexts: Any = None) -> LoopMap:
        """The map of one token while the others are held where they are.

        Args:
            token: position, or from the end if negative.
            states: (n, tokens, features): row i of these, in its context, is context i of the result.
            contexts: as in a call.

        Returns:
            A map with `state_shape` (features,) and n contexts.
        """
        if len(self.state_shape) != 2:
            raise ValueError(f"one token can be taken from states (tokens, features); {self.name} has states "
                             f"{self.state_shape}.")
        if not -self.state_shape[0] <= token < self.state_shape[0]:
            raise IndexError(f"token {token} of {self.state_shape[0]}.")
        states, contexts = self._checked(states, contexts)
        token %= self.state_shape[0]

        def function(rows: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
            held = states[which]
            whole = torch.cat((held[:, :token], rows[:, None], held[:, token + 1:]), dim=1)
            return self.function(whole, contexts[which])[:, token]

        made = LoopMap(function, self.state_shape[1:], n_contexts=len(states), dtype=self.dtype, device=self.device,
                       module=self.module, name=f"{self.name}, token {token}")
        made._surround, made._hold = lambda which, attention: self._running(contexts[which], attention), self.held
        return made

    def initial_states(self, contexts: Any = None, *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Where the model starts, (n, *state_shape): by default one row a context.

        Args:
            contexts: (n,) whole numbers; by default each context once.
            seeds: one a row, for models with a random start; by default 0, 1, 2, ...
        """
        model = self._model("initial states")
        contexts = self._contexts(self.n_contexts if contexts is None else len(contexts), contexts)
        seeds = list(range(len(contexts))) if seeds is None else list(seeds)
        if len(seeds) != len(contexts):
            raise ValueError(f"one seed a row is needed; got {len(seeds)} seeds for {len(contexts)} rows.")
        # a start that is drawn in single precision by design stays that: other digits would be another start
        with torch.no_grad(), self.live.running(contexts, None) as context:  # type: ignore[union-attr]
            start = model.initial_state(context, seeds=seeds)
            return start.to(self.device, self.dtype, copy=True)  # it may be part of the context

    def readout(self, states: torch.Tensor, contexts: Any = None) -> torch.Tensor:
        """Logits of states, (n, tokens, vocabulary)."""
        model = self._model("a readout")
        states, contexts = self._checked(states, contexts)
        with torch.no_grad(), self.live.running(contexts) as context:  # type: ignore[union-attr]
            return model.readout(states, context)

    def _model(self, what: str) -> LoopedModel:
        if self.live is None or self.live.model is None:
            raise ValueError(f"{self.name} was not made from a looped model, which alone has {what}. "
                             "Use LoopMap.of(model, tokens).")
        return self.live.model


def _differentiable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one that was made in the caller's inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _back(following: torch.Tensor, states: torch.Tensor, cotangents: torch.Tensor, *,
          batched: bool = False) -> torch.Tensor:
    if following.is_inference():
        raise ValueError("the map runs in inference mode, where nothing can be differentiated backwards. "
                         "Take that out of its code.")
    if not following.requires_grad:  # a map that forgets its state
        return torch.zeros_like(cotangents)
    return torch.autograd.grad(following, states, cotangents, retain_graph=True, is_grads_batched=batched,
                               allow_unused=True, materialize_grads=True)[0]


def _jvp(function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor,
         tangents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _forward_mode()
    following, pushed, *_ = torch.func.jvp(function, (states,), (tangents,))
    return following, pushed


@functools.cache
def _forward_mode() -> None:
    """Torch warns of itself when forward mode is first used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


class _LiveModel:
    """A model's step in the contexts of its prompts, with all that must surround it while it runs."""

    def __init__(self, name: str, module: nn.Module | None, step: Callable[[torch.Tensor, Any], torch.Tensor],
                 embed: Callable[[torch.Tensor], Any], dtype: torch.dtype | None, device: torch.device,
                 n_tokens: int | None, model: LoopedModel | None = None) -> None:
        self.name, self.module, self.model = name, module, model
        self.step, self.embed = step, embed
        self.dtype, self.device, self.n_tokens = dtype, device, n_tokens
        self.snapshot = None if module is None else Snapshot(module, dtype)
        self.selections: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self.modes: dict[str, Surroundings] = {}
        self.runs = False

    @contextlib.contextmanager
    def running(self, contexts: torch.Tensor, attention: str | None = "kernel") -> Iterator[Any]:
        """Gives the context of these rows; within, `apply` takes states in the same rows. None: casts stay casts."""
        with self.lent():
            context = self._context(contexts)
            if attention is None:
                yield context
            else:
                if attention not in self.modes:
                    self.modes[attention] = Surroundings(self.dtype, attention=attention, tokens=self.n_tokens)
                with self.modes[attention]:
                    yield context

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The module is the snapshot and runs eagerly; nothing more where it is so already."""
        if self.runs:
            yield
            return
        with contextlib.ExitStack() as stack:
            if self.snapshot is not None:
                stack.enter_context(self.snapshot.lent())
            stack.enter_context(uncompiled())
            stack.enter_context(same_random_numbers(self.name, self.device))
            stack.callback(setattr, self, "runs", False)
            self.runs = True
            yield

    def _context(self, contexts: torch.Tensor) -> Any:
        key = tuple(contexts.tolist())
        if key not in self.selections:
            with torch.inference_mode(False), torch.no_grad(), Surroundings(self.dtype, attention="kernel"):
                self.selections[key] = self.embed(contexts)
            if len(self.selections) > _KEPT:
                self.selections.popitem(last=False)
        self.selections.move_to_end(key)
        return self.selections[key]

    def apply(self, states: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        if not self.runs:
            with self.running(contexts):
                return self.step(states, self._context(contexts))
        return self.step(states, self._context(contexts))
