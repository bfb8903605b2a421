"""The tasks of `dynloop.nano.tasks`, solved from the text of a question alone: slow, independent of the generators.

For each task `solve(question, settings) -> (answer, difficulty)` and `together(question, settings) -> set` of the pairs
of entities that it brings together; a question is bytes without the closing "=".
"""

import itertools

import numpy as np


def _modular_addition(question, settings):
    numbers = [part[0] - 128 for part in question.split(b"+")]
    total = 0
    for number in numbers:
        total = (total + number) % settings["modulus"]
    return bytes([128 + total]), len(numbers)


def _summands(question, settings):
    numbers = [part[0] for part in question.split(b"+")]
    return {tuple(sorted(pair)) for pair in itertools.combinations(numbers, 2)}


def _addition(question, settings):
    a, b = question.split(b"+")
    width, carry, chain, longest = len(a), 0, 0, 0
    digits = ""
    for x, y in zip(reversed(a.decode()), reversed(b.decode()), strict=True):
        total = int(x) + int(y) + carry
        digits, before, carry = str(total % 10) + digits, carry, total // 10
        begun = int(x) + int(y) > 9  # carries whatever comes from the right
        chain = 1 if begun else chain + 1 if carry and before else 0
        longest = max(longest, chain)
    answer = (str(carry) + digits).encode()
    assert int(answer) == int(a) + int(b)
    return answer, longest if settings["dial"] == "carries" else width


def _columns(question, settings):
    a, b = question.split(b"+")
    return {tuple(sorted(pair)) for pair in zip(a, b, strict=True)}


def _parity(question, settings):
    return str(question.count(b"1") % 2).encode(), len(question)


def _ends(question, settings):
    return {(question[:3], question[-3:])}


def _p_hop(question, settings):
    hops, text = question[0] - ord("0"), question[1:]
    at = len(text) - 1
    for _ in range(hops):
        at = max(j for j in range(1, at + 1) if text[j - 1] == text[at])
    return text[at:at + 1], hops


def _pointer_chasing(question, settings):
    pointers, hops, node = question[:-2], question[-2] - ord("0"), question[-1]
    leads = {pointers[i]: pointers[i + 1] for i in range(0, len(pointers), 2)}
    assert len(leads) == len(set(leads.values())) == settings["nodes"]
    for _ in range(hops):
        node = leads[node]
    return bytes([node]), hops


def _start_and_answer(solve):
    return lambda question, settings: {(question[-1:], solve(question, settings)[0])}


def _knowledge_graph(question, settings):
    rng = np.random.default_rng((settings["seed"], 0))
    leads = [rng.permutation(settings["entities"]) for _ in range(settings["relations"])]
    entity = question[0] - 128
    for relation in question[1:]:
        entity = leads[relation - ord("A")][entity]
    return bytes([128 + entity]), len(question) - 1


def _facts(question, settings):
    """The facts that a question of several hops puts together; a fact alone brings nothing together."""
    known, entity = set(), question[:1]
    for place in range(1, len(question)):
        known.add((entity, question[place]))
        entity = _knowledge_graph(question[:place + 1], settings)[0]
    return known if len(question) > 2 else set()


SOLVE = {"modular_addition": _modular_addition, "addition": _addition, "parity": _parity, "p_hop": _p_hop,
         "pointer_chasing": _pointer_chasing, "knowledge_graph": _knowledge_graph}
TOGETHER = {"modular_addition": _summands, "addition": _columns, "parity": _ends, "p_hop": _start_and_answer(_p_hop),
            "pointer_chasing": _start_and_answer(_pointer_chasing), "knowledge_graph": _facts}
