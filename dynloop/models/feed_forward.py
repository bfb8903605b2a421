"""A feed-forward decoder as one recurrence of its layers: what a loop is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import described, encoder, label, pretrained
from dynloop.models.hooked_block import hooked_block
from dynloop.models.looped_model import LoopedModel, arguments_of, first_state, undisturbed, unwrapped
from dynloop.models.unembedding import Unembedding, gain_of


def feed_forward(model: nn.Module | str | Path, *, layers: str | Sequence[str] | None = None, name: str | None = None,
                 tokenizer: Any = None) -> LoopedModel:
    """A feed-forward decoder (Llama, GPT-2, any stack of layers) as one recurrence, the only one that it has.

    Layer k of the recording is what layer k of the stack returns; norms after the stack are not part of it. Record it
    with `capture(feed_forward(model), prompts, out=..., n_recurrences=1)`, and give that to `mirroring` as reference.

    Args:
        model: the whole model, or the folder or name of a checkpoint that transformers opens without code of its own.
        layers: dotted path of the stack, such as "model.layers", or the paths of its layers in the order of their
            calls; by default the list of modules that holds most weights.
        name: its label; by default the checkpoint's or the folder's.
        tokenizer: text -> token numbers, or an object with `.encode`; by default the one beside the checkpoint.

    Returns:
        The specification, for recording; it is no map, because nothing is applied twice. Its final norm and head
        (`unembed`) are found by what they take and give, where they are modules of their own.

    Raises:
        ValueError: no stack of layers, or several that hold as many weights; layers that do not all return states of
            one width.

    Misleads:
        The stack of a model whose layers share weights, or that is run several times, is a loop: use `load`.

    Example:
        >>> import torch
        >>> from dynloop.models.feed_forward import feed_forward
        >>> class Decoder(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embedding = torch.nn.Embedding(9, 4)
        ...         self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        ...     def forward(self, tokens):
        ...         h = self.embedding(tokens)
        ...         for layer in self.layers:
        ...             h = h + layer(h)
        ...         return h @ self.embedding.weight.T
        >>> reference = feed_forward(Decoder())
        >>> len(reference.points), reference.most_recurrences
        (3, 1)
    """
    whole = unwrapped(model) if isinstance(model, nn.Module) else pretrained(str(model))
    if isinstance(layers, str) or layers is None:
        path = _stack_of(whole) if layers is None else layers
        n = len(list(whole.get_submodule(path).children())) if _holds(whole, path) else 0
        if not n:
            raise ValueError(f"{path!r} is no list of layers of {type(whole).__name__}. Name one, such as "
                             "'model.layers', or the paths of the layers.")
        layers = [f"{path}.{i}" for i in range(n)]
    called = label(whole, type(whole).__name__, name)
    settings = {"use_cache": False} if "use_cache" in arguments_of(whole) else {}

    def run(tokens: torch.Tensor, n_recurrences: int, state: Any) -> torch.Tensor:
        if n_recurrences != 1:
            raise ValueError(f"{called} is a feed-forward model and runs its layers once; got n_recurrences="
                             f"{n_recurrences}. Pass n_recurrences=1.")
        output = whole(tokens, **settings)
        found = first_state(output)
        return output if found is None else found

    looped = hooked_block(whole, layers, run=run, most_recurrences=1, name=called, encode=encoder(
        whole, tokenizer, called), training_recurrences="1 (feed-forward)")
    return dataclasses.replace(looped, provenance={**looped.provenance, **described(whole, "feed_forward", model)},
                               unembed=_unembedding(whole, looped))


def _unembedding(whole: nn.Module, looped: LoopedModel) -> Unembedding | None:
    """The norm that takes what the last layer gives, and the module that makes logits of it; None if they do not."""
    last = unwrapped(looped.points[-1].modules[0])
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def note(module: nn.Module, given: Any, output: Any) -> None:
        taken, gave = first_state(given), first_state(output)
        if taken is not None and gave is not None:
            calls.append((module, taken, gave))
            if module is last:
                seen["last"] = taken, gave

    tokens = (torch.arange(2, device=looped.device)[None] * 7 + 3) % looped.vocabulary
    handles = [part.register_forward_hook(note) for part in whole.modules()]
    try:
        with undisturbed(whole):
            logits = looped.logits(tokens, 1, None)
            state = seen["last"][1]
            norms = [None, *dict.fromkeys(part for part, taken, gave in list(calls) if part is not last
                     and torch.equal(taken, state) and gain_of(part, looped.width, state) is not None)]
            cap = getattr(getattr(whole, "config", None), "final_logit_softcapping", None)  # Gemma's
            after = None if not cap else lambda logits: cap * torch.tanh(logits / cap)
            heads = dict.fromkeys(part for part, _, gave in list(calls) if part is not whole
                                  and gave.shape == logits.shape and getattr(part, "weight", None) is not None)
            for head in heads:
                for norm in norms:
                    found = Unembedding(head, norm, after=after)
                    if _gives(found, state, logits):
                        return found
    except (KeyError, TypeError, RuntimeError):  # layers that are called otherwise: nothing found
        return None
    finally:
        for handle in handles:
            handle.remove()
    return None


def _gives(unembed: Unembedding, state: torch.Tensor, logits: torch.Tensor) -> bool:
    try:
        return torch.allclose(unembed(state), logits, rtol=1e-4, atol=1e-5)
    except (IndexError, TypeError, RuntimeError):  # takes something else, such as tokens
        return False


def _holds(module: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in module.named_modules())


def _stack_of(module: nn.Module) -> str:
    """The path of the list of modules that holds most weights."""
    held = {path: sum(weight.numel() for weight in part.parameters()) for path, part in module.named_modules()
            if isinstance(part, nn.ModuleList)}
    most = max(held.values(), default=0)
    found = [path for path, n in held.items() if n == most]
    if not most or len(found) > 1:
        what = f"several lists of layers of equal size ({', '.join(found)})" if most else "no list of layers"
        raise ValueError(f"{type(module).__name__} has {what}. Name it, such as layers='model.layers', or the paths "
                         "of the layers.")
    return found[0]
