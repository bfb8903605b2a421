"""As ALBERT: one group of layers, bidirectional, post-norm, applied `num_hidden_layers` times; layers give tuples."""

from torch import nn

from dynloop.models import hooked_block, temporarily
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised


class Group(nn.Module):
    def __init__(self):
        super().__init__()
        self.albert_layers = nn.ModuleList([Layer(norm="post", causal=False) for _ in range(2)])

    def forward(self, hidden_states):
        seen = []
        for layer in self.albert_layers:
            hidden_states = layer(hidden_states)
            seen.append(hidden_states)
        return (hidden_states, seen)


class Config:
    num_hidden_layers = 3


class Model(Traced):
    def __init__(self):
        super().__init__()
        self.embeddings, self.config = nn.Embedding(VOCABULARY, WIDTH), Config()
        self.group, self.head = Group(), nn.Linear(WIDTH, VOCABULARY)

    def recur(self, x, context=None, r=0):
        x, seen = self.group(x)
        for i, state in enumerate(seen):
            self.note(r, i, "block", state)
        return x

    def forward(self, input_ids=None, inputs_embeds=None):
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        for r in range(self.config.num_hidden_layers):
            x = self.recur(x, r=r)
        return (self.head(x),)


def looped(model=None):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)

    def run(tokens, n, state):
        with temporarily(own.config, num_hidden_layers=n):
            return model(inputs_embeds=state)[0]

    return hooked_block(
        model, [f"group.albert_layers.{i}" for i in range(2)], embed=own.embeddings, causal=False,
        initial_state=lambda x, seeds=None: x, step=own.recur, readout=lambda x, context: own.head(x), run=run)
