"""As HRM: two networks, layers called by keywords alone, positions of a puzzle before the tokens, early cycles without
gradients, and an outer loop (adaptive computation time) that calls the whole model again and again with a carry. With
`one_network` as TRM: one network updates both states in turn."""

import dataclasses

import torch
from torch import nn

from dynloop.models import hooked_block, temporarily
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised

H_CYCLES, L_CYCLES, PUZZLE = 2, 2, 1


class KeywordLayer(Layer):
    def forward(self, cos_sin, hidden_states):
        return super().forward(hidden_states) + 0 * cos_sin[0].sum()


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([KeywordLayer(norm="post", causal=False) for _ in range(2)])

    def forward(self, hidden_states, input_injection, note, **given):
        hidden_states = hidden_states + input_injection
        for i, layer in enumerate(self.layers):
            hidden_states = note(i, layer(cos_sin=(torch.ones(2),), hidden_states=hidden_states))
        return hidden_states


@dataclasses.dataclass
class Carry:
    z_H: torch.Tensor
    z_L: torch.Tensor
    steps: int


class Inner(nn.Module):
    def __init__(self, one_network):
        super().__init__()
        self.embed_tokens, self.puzzle = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.ones(PUZZLE, WIDTH))
        self.L_level = Level()
        self.H_level = None if one_network else Level()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("H_init", torch.linspace(-1, 1, WIDTH))
        self.register_buffer("L_init", torch.linspace(1, -1, WIDTH))


class Model(Traced):
    def __init__(self, one_network=False):
        super().__init__()
        self.inner, self.h_cycles = Inner(one_network), H_CYCLES

    def embed(self, tokens):
        x = self.inner.embed_tokens(tokens)
        return torch.cat((self.inner.puzzle.expand(len(x), -1, -1), x), dim=1)

    def start(self, x, seeds=None):
        return torch.cat((self.inner.L_init.expand_as(x), self.inner.H_init.expand_as(x)), dim=-1)

    def cycle(self, state, x, r=0):
        low, high = state.chunk(2, dim=-1)
        fast, slow = self.inner.L_level, self.inner.H_level or self.inner.L_level
        for c in range(L_CYCLES):
            low = fast(low, high + x, lambda i, s, c=c: self.note(r, 2 * c + i, "L", s))
        high = slow(high, low, lambda i, s: self.note(r, 2 * L_CYCLES + i, "H", s))
        return torch.cat((low, high), dim=-1)

    def forward(self, carry, batch):
        x, state = self.embed(batch["inputs"]), torch.cat((carry.z_L, carry.z_H), dim=-1)
        with torch.no_grad():
            for c in range(self.h_cycles - 1):
                state = self.cycle(state, x, carry.steps + c)
        state = self.cycle(state, x, carry.steps + self.h_cycles - 1)
        low, high = state.detach().chunk(2, dim=-1)
        return (Carry(z_H=high, z_L=low, steps=carry.steps + self.h_cycles),
                {"logits": self.inner.lm_head(high)[:, PUZZLE:]})


def looped(model=None, one_network=False):
    model = initialised(Model, one_network) if model is None else model
    own = getattr(model, "_orig_mod", model)

    def run(tokens, n, state):
        low, high = state.chunk(2, dim=-1)
        carry, left, output = Carry(high, low, 0), n, {}
        while left:
            with temporarily(own, h_cycles=min(left, H_CYCLES)):
                carry, output = model(carry, {"inputs": tokens})
            left = n - carry.steps
        return output["logits"]

    slow = "inner.L_level" if one_network else "inner.H_level"
    return hooked_block(
        model, [f"inner.L_level.layers.{i}" for i in range(2)] * L_CYCLES + [f"{slow}.layers.{i}" for i in range(2)],
        stacks=["L"] * 2 * L_CYCLES + ["H"] * 2, state_points=[2 * L_CYCLES - 1, 2 * L_CYCLES + 1], embed=own.embed,
        initial_state=own.start, step=own.cycle, causal=False, forwards="recurrences", prefix=PUZZLE, run=run,
        readout=lambda state, x: own.inner.lm_head(state.chunk(2, dim=-1)[1])[:, PUZZLE:])
