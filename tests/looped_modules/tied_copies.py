"""As Mixture-of-Recursions: every module is called once; the recurrences are distinct modules that share their
matrices and keep norms of their own."""

from torch import nn

from dynloop.models import hooked_block
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised

COPIES = 3


class Model(Traced):
    def __init__(self):
        super().__init__()
        self.embed_tokens, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.layers = nn.ModuleList([nn.ModuleList([Layer(), Layer()]) for _ in range(COPIES)])
        for copy in self.layers[1:]:
            for tied, first in zip(copy, self.layers[0], strict=True):
                for part in ("qkv", "out", "up", "down"):
                    getattr(tied, part).weight = getattr(first, part).weight

    def recur(self, x, context=None, recurrence=0):
        for i, layer in enumerate(self.layers[recurrence]):
            x = self.note(recurrence, i, "block", layer(x))
        return x

    def forward(self, tokens, inputs_embeds=None):
        x = self.embed_tokens(tokens) if inputs_embeds is None else inputs_embeds
        for r in range(COPIES):
            x = self.recur(x, recurrence=r)
        return self.head(x)


def looped(model=None):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)
    return hooked_block(
        model, [tuple(f"layers.{r}.{i}" for r in range(COPIES)) for i in range(2)], embed=own.embed_tokens,
        initial_state=lambda x, seeds=None: x, step=own.recur, readout=lambda x, context: own.head(x), autonomous=False,
        run=lambda tokens, n, state: model(tokens, inputs_embeds=state))
