"""As Ouro: the whole stack is the loop, the final norm stands inside it, the map is autonomous, the number of loops is
an attribute; a cache with a slot for every (loop, layer), and generation with it."""

import dataclasses

import torch
from torch import nn

from dynloop.models import hooked_block, temporarily
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised


@dataclasses.dataclass
class Output:
    loss: None
    logits: torch.Tensor
    cache: dict | None


class Model(Traced):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(2)])
        self.norm, self.lm_head = nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.total_ut_steps = 3

    def recur(self, x, context=None, r=0, mask=None, cache=None):
        for i, layer in enumerate(self.layers):
            x = layer(x, mask=mask, cache=cache, slot=r * len(self.layers) + i)
            if i + 1 < len(self.layers):
                self.note(r, i, "block", x)
        return self.note(r, len(self.layers) - 1, "block", self.norm(x))

    def forward(self, tokens, attention_mask=None, cache=None, inputs_embeds=None):
        x = self.embed_tokens(tokens) if inputs_embeds is None else inputs_embeds
        for r in range(self.total_ut_steps):
            x = self.recur(x, r=r, mask=attention_mask, cache=cache)
        return Output(None, self.lm_head(x), cache)

    def generate(self, tokens, n_new, use_cache=True):
        cache = {} if use_cache else None
        new = tokens
        for _ in range(n_new):
            output = self(new if use_cache else tokens, cache=cache)
            new = output.logits[:, -1:].argmax(-1)
            tokens = torch.cat((tokens, new), dim=1)
        return tokens


def looped(model=None, use_cache=True):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)

    def run(tokens, n, state):
        with temporarily(own, total_ut_steps=n):
            return model(None, inputs_embeds=state).logits

    def generate(tokens, n, state, n_new):
        with temporarily(own, total_ut_steps=n):
            return own.generate(tokens, n_new, use_cache)

    return hooked_block(
        model, ["layers.0", "norm"], embed=own.embed_tokens, initial_state=lambda x, seeds=None: x, step=own.recur,
        readout=lambda x, context: own.lm_head(x), run=run, generate=generate, mask="honoured")
