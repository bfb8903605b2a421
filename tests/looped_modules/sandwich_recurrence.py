"""As Huginn and what was retrofitted in its image: prelude, an adapter that lets the input in at every recurrence, a
block, a coda; a random start that the forward pass draws itself; layers give tuples; the final norm is called twice;
the mask is ignored."""

import torch
from torch import nn

from dynloop.models import hooked_block
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised


class TupleLayer(Layer):
    def forward(self, x, step):
        return super().forward(x), {"step": step}


class Model(Traced):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(VOCABULARY, WIDTH), "prelude": nn.ModuleList([TupleLayer()]),
            "adapter": nn.Linear(2 * WIDTH, WIDTH, bias=False),
            "core_block": nn.ModuleList([TupleLayer(norm="post") for _ in range(3)]),
            "coda": nn.ModuleList([TupleLayer()]), "ln_f": nn.RMSNorm(WIDTH, eps=1e-6)})
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def embed(self, tokens):
        return self.transformer.prelude[0](self.transformer.wte(tokens), step=-1)[0]

    def initial_state(self, e, *, seeds=None):
        if seeds is None:
            return torch.randn_like(e)
        return torch.stack([torch.randn(e.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds]).to(e)

    def recur(self, x, e, r=0):
        x = self.transformer.adapter(torch.cat((x, e), dim=-1))
        for i, layer in enumerate(self.transformer.core_block):
            x = self.note(r, i, "core", layer(x, step=torch.tensor(r))[0])
        return x

    def readout(self, x, e=None):
        return self.lm_head(self.transformer.ln_f(self.transformer.coda[0](self.transformer.ln_f(x), step=-2)[0]))

    def forward(self, input_ids, input_states=None, attention_mask=None, num_steps=4, attention=None):
        e = self.embed(input_ids)
        x = self.initial_state(e) if input_states is None else input_states
        for r in range(num_steps):
            x = self.recur(x, e, r)
        return {"logits": self.readout(x), "latent_states": self.transformer.ln_f(x)}


def looped(model=None):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)
    return hooked_block(
        model, [f"transformer.core_block.{i}" for i in range(3)], stacks=["core"] * 3, embed=own.embed,
        initial_state=own.initial_state, step=own.recur, readout=own.readout, random_start=True,
        run=lambda tokens, n, state: model(input_ids=tokens, num_steps=n, input_states=state)["logits"])
