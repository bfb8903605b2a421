"""Facts about entities that are learned by heart, and questions that put several of them together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.nano.task import ALWAYS_TRAINED, BY_HASH, NEW_COMBINATION, NOWHERE, Drawn, Task, held_out_pairs
from dynloop.settings import check_whole

ENTITIES = 128  # the byte of entity 0


def knowledge_graph(*, entities: int = 20, relations: int = 4, difficulties: Sequence[int] = (1, 2),
                    harder: Sequence[int] = (3,), held_out: float = 0.1, pair_share: float = 0.2,
                    seed: int = 0) -> Task:
    """An entity, some relations, and where they lead: eAB=x, x being B of A of e.

        answer = f_B(f_A(e))

    The graph is fixed: each relation is a permutation of the entities, drawn once from `seed`. It stands in no question
    and must be memorised from its facts (one relation, difficulty 1), all of which are trained. Of these, the share
    `pair_share` takes part in no trained question of several hops: "new_combinations" are questions that put together
    such facts alone, "in_distribution" and "train" those of the other facts alone; what mixes them is not asked.
    "harder" are longer chains of ordinary facts. A model that generalises in distribution may still fail on both.
    Entities are bytes from 128, relations letters from A.

    Args:
        entities: from 3 to 128.
        relations: from 1 to 26.
        difficulties: numbers of hops in training; 1 stands for the facts themselves and is needed.
        harder: numbers of hops that are never trained.
        held_out: share of the questions of several hops about ordinary facts that is kept for "in_distribution".
        pair_share: share of the facts (entity, relation) that are trained alone.
        seed: of the graph, and of which facts these are.

    Raises:
        ValueError: settings.

    Source:
        Wang et al. 2024, Grokked transformers are implicit reasoners (arXiv 2405.15071), section 3, where each entity
        has but some of the relations and a relation leads to any entity.
    """
    for name, value, least, most in (("entities", entities, 3, 128), ("relations", relations, 1, 26)):
        check_whole(name, value, least, f"a whole number from {least} to {most}")
        if value > most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}; got {value}.")
    for hops in (*difficulties, *harder):
        check_whole("a number of hops", hops, 1, "a whole number of at least 1")
    if 1 not in difficulties or max(difficulties) < 2:
        raise ValueError(f"difficulties must hold 1, the facts, and at least one larger number of hops; got "
                         f"{list(difficulties)}.")
    rng = np.random.default_rng((seed, 0))
    leads = np.stack([rng.permutation(entities) for _ in range(relations)], axis=1)  # (entities, relations)
    alone = held_out_pairs(entities, relations, pair_share, f"knowledge_graph {seed}")

    def generate(rng: np.random.Generator, difficulty: int, n: int) -> Drawn:
        chain = np.empty((n, difficulty + 1), dtype=int)
        chain[:, 0] = rng.integers(0, entities, n)
        relation = rng.integers(0, relations, (n, difficulty))
        for hop in range(difficulty):
            chain[:, hop + 1] = leads[chain[:, hop], relation[:, hop]]
        special = alone[chain[:, :-1], relation]
        kind = np.where(special.all(1), NEW_COMBINATION, np.where(special.any(1), NOWHERE, BY_HASH))
        if difficulty == 1:
            kind[:] = ALWAYS_TRAINED
        question = np.c_[ENTITIES + chain[:, 0], ord("A") + relation].astype(np.uint8)
        return Drawn(question, (ENTITIES + chain[:, -1:]).astype(np.uint8), np.c_[chain, chain[:, -1]], kind)

    settings = {"entities": entities, "relations": relations, "difficulties": list(difficulties),
                "harder": list(harder), "held_out": held_out, "pair_share": pair_share, "seed": seed}
    return Task("knowledge_graph", settings, tuple(difficulties), tuple(harder), generate, lambda hops: hops + 3,
                entities, held_out)
