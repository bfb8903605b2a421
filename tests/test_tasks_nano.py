"""Tasks with a dial: right answers, splits that share nothing, and a training that asks for answers alone."""

import dataclasses
import functools
import inspect
import json

import numpy as np
import pytest
import task_oracles
import torch
from torch.nn import functional as F

import dynloop.nano.tasks as tasks_module
import dynloop.nano.training as training_module
from dynloop.cli import main
from dynloop.nano import NanoConfig, NanoModel, TrainingConfig, held_out_loss, load_corpus, make_task, task_names, train
from dynloop.nano.answers import accuracies, right_answers
from dynloop.nano.task import SPLITS, Task, held_out_pairs

TINY = NanoConfig(width=16, n_heads=2, n_recurrences=3)
SHORT = TrainingConfig(steps=8, batch_size=4, length=18, warmup=2, log_every=2, evaluate_every=4, checkpoint_every=3)
NAMES = task_names()


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def cheap_accuracies():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "accuracies", functools.partial(accuracies, n=4))
        yield


def check_task(name):
    """The contract of a task's file."""
    maker = tasks_module.task_maker(name)
    settings = inspect.signature(maker).parameters
    assert {"difficulties", "harder", "held_out", "seed"} <= set(settings), f"{name} lacks a setting"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in settings.values()), \
        f"every setting of {name} must be keyword-only and have a default"
    assert all(word in maker.__doc__ for word in ("Args:", "Raises:", "Source:")), f"{name} is not documented"
    task = maker()
    assert isinstance(task, Task)
    assert task.name == name
    assert task.splits == SPLITS
    assert set(task.settings) == set(settings), f"{name} must record every setting"
    for split in SPLITS:
        questions = task.questions(1, 60, split=split)
        assert set(questions.split) == {split}
        assert set(questions.difficulty) <= set(task.harder if split == "harder" else task.difficulties)
        assert len(set(questions.prompts)) == len(questions)
        for row, prompt, answer, level in zip(questions.text, questions.prompts, questions.answers,
                                              questions.difficulty, strict=True):
            whole = prompt + answer
            assert row.tobytes() == whole + b"\n" * (task.length - len(whole))
            assert whole.count(b"=") == 1
            assert b"\n" not in whole
            assert len(whole) == task.length_of(int(level)), "length_of is wrong"
        at = questions.asked.argmax(1) - 1
        rows = np.arange(len(at))
        meant = questions.entity[rows, at]
        firsts = [answer[0] for answer in questions.answers]
        assert (meant >= 0).all(), "the answer is an entity"
        assert len(set(zip(meant, firsts, strict=True))) == len(set(meant)) == len(set(firsts))
        assert (questions.entity[np.arange(task.length) > at[:, None]] == -1).all()
    again = make_task(name, task.describe()["settings"])
    assert again.describe() == task.describe()
    assert json.loads(json.dumps(task.describe())) == task.describe()
    one, two = (t.questions(5, 20) for t in (task, again))
    assert (one.text == two.text).all()
    assert make_task(name, {"held_out": 0.3}).describe()["sha256"] != task.describe()["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_keeps_its_contract(name):
    check_task(name)


PLANTED = '''
import numpy as np
from dynloop.nano.task import BY_HASH, NEW_COMBINATION, Drawn, Task
def echo(*, difficulties=(4, 5), harder=(7,), held_out=0.2, seed=0):
    """Says the first letter again.

    Args:
        difficulties: lengths.

    Raises:
        ValueError: settings.

    Source:
        Own.
    """
    def generate(rng, difficulty, n):
        x = rng.integers(0, 8, (n, difficulty))
        entity = np.full((n, difficulty + 1), -1)
        entity[:, -1] = x[:, 0]
        return Drawn((97 + x).astype(np.uint8), (97 + x[:, :1]).astype(np.uint8), entity,
                     np.where(x[:, 0] == x[:, 1], NEW_COMBINATION, BY_HASH))
    settings = {"difficulties": list(difficulties), "harder": list(harder), "held_out": held_out, "seed": seed}
    return Task("echo", settings, tuple(difficulties), tuple(harder), generate, lambda d: d + 2, 8, held_out)
'''


@pytest.mark.parametrize(("change", "words"), [
    (lambda text: text, ""), (lambda text: text.replace("entity[:, -1] = x[:, 0]", "pass"), "is an entity"),
    (lambda text: text.replace(", seed=0", ""), "lacks a setting"),
    (lambda text: text.replace("(*, d", "(d"), "keyword-only"),
    (lambda text: text.replace("d + 2, 8", "d + 3, 8"), "length_of")])
def test_a_new_file_is_found_and_held_to_the_contract(tmp_path, monkeypatch, change, words):
    text = change(PLANTED)
    (tmp_path / "echo.py").write_text(text if "seed=0" in text else text.replace("seed}", "0}"))
    monkeypatch.setattr(tasks_module, "__path__", [*tasks_module.__path__, str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "dynloop.nano.tasks.echo", raising=False)
    assert "echo" in task_names()
    if not words:
        check_task("echo")
    else:
        with pytest.raises(AssertionError, match=words):
            check_task("echo")


def test_every_task_has_an_oracle():
    assert set(task_oracles.SOLVE) == set(task_oracles.TOGETHER) == set(NAMES), "write one in tests/task_oracles.py"


# ---- answers and difficulties

@pytest.mark.parametrize("name", NAMES)
def test_answers_and_difficulties_are_the_oracles(name):
    task = make_task(name)
    for split in SPLITS:
        questions = task.questions(3, 150, split=split)
        for prompt, answer, level in zip(questions.prompts, questions.answers, questions.difficulty, strict=True):
            assert task_oracles.SOLVE[name](prompt[:-1], task.settings) == (answer, level), prompt


def test_the_examples_of_the_docstrings_are_right():
    solve = task_oracles.SOLVE
    assert solve["p_hop"](b"2bcabda", {}) == (b"c", 2)
    assert solve["pointer_chasing"](b"dbacbacd2b", {"nodes": 4}) == (b"c", 2)
    assert solve["addition"](b"0127+0375", {"dial": "carries"}) == (b"00502", 2)
    assert solve["parity"](b"0111", {}) == (b"1", 4)


def test_additions_of_more_digits_are_the_other_dial():
    task = make_task("addition", {"dial": "digits", "difficulties": [1, 2], "harder": [3]})
    assert task.length == 12
    for split in SPLITS:
        questions = task.questions(0, 60, split=split)
        for prompt, answer, level in zip(questions.prompts, questions.answers, questions.difficulty, strict=True):
            assert task_oracles.SOLVE["addition"](prompt[:-1], task.settings) == (answer, level)


def test_harder_additions_have_more_digits_than_those_in_training():
    assert make_task("addition", {"dial": "digits"}).harder == (5, 6)
    assert make_task("addition", {"dial": "digits", "difficulties": [7]}).harder == (8, 9)
    assert make_task("addition", {"dial": "digits", "difficulties": [8, 9]}).harder == ()


def test_entities_are_the_results_on_the_way():
    questions = make_task("modular_addition", {"modulus": 11}).questions(0, 40, split="harder")
    for row, entity in zip(questions.text, questions.entity, strict=True):
        numbers = [int(byte) - 128 for byte in row if byte >= 128]
        at = [i for i, byte in enumerate(row) if byte >= 128]
        assert [int(entity[i]) for i in at[:-1]] == [sum(numbers[:k + 1]) % 11 for k in range(len(numbers) - 1)]
    graph = make_task("knowledge_graph")
    questions = graph.questions(0, 40, split="harder")
    for prompt, entity in zip(questions.prompts, questions.entity, strict=True):
        for k in range(1, len(prompt) - 1):
            answer, _ = task_oracles.SOLVE["knowledge_graph"](prompt[:k + 1], graph.settings)
            assert entity[k] == answer[0] - 128


@pytest.mark.parametrize("name", NAMES)
def test_all_difficulties_of_a_split_are_drawn(name):
    task = make_task(name)
    drawn = task.questions(0, 400, distinct=False)
    seen, counts = np.unique(drawn.difficulty, return_counts=True)
    assert seen.tolist() == sorted(task.difficulties)
    assert counts.min() > 0.5 * 400 / len(seen)
    assert set(task.questions(0, 30, split="harder", difficulty=task.harder[0]).difficulty) == {task.harder[0]}


# ---- splits

@pytest.mark.parametrize("name", NAMES)
def test_no_question_and_no_twin_is_in_two_splits(name):
    task = make_task(name, {"held_out": 0.3})
    known = {split: set(task.questions(2, 500, split=split).prompts) for split in SPLITS}
    for step in range(8):  # what `train` draws
        text, asked = task.batch(np.random.default_rng((7, step)), n=128, length=task.length)
        known["train"] |= {row[:at].tobytes() for row, at in zip(text, asked.argmax(1), strict=True)}
    if name == "pointer_chasing":  # the same pointers, listed in another order
        known = {split: {(*sorted(q[i:i + 2] for i in range(0, len(q) - 3, 2)), q[-3:]) for q in own}
                 for split, own in known.items()}
    if name in ("modular_addition", "addition"):
        known = {split: {b"+".join(sorted(q[:-1].split(b"+"))) for q in own} for split, own in known.items()}
    for split, own in known.items():
        others = set().union(*(known[other] for other in SPLITS if other != split))
        assert own
        assert not own & others, split


@pytest.mark.parametrize("name", NAMES)
def test_a_combination_that_is_kept_is_in_no_other_split(name):
    task, together = make_task(name), task_oracles.TOGETHER[name]
    trained = set()
    for split in ("train", "in_distribution", "harder"):
        for prompt in task.questions(1, 1500 if split == "train" else 200, split=split, distinct=False).prompts:
            trained |= together(prompt[:-1], task.settings)
    fresh = task.questions(1, 100, split="new_combinations")
    for prompt in fresh.prompts:
        own = together(prompt[:-1], task.settings)
        assert own - trained, prompt
        if name == "knowledge_graph":  # nothing but facts that were trained alone
            assert not own & trained


def test_all_facts_of_the_graph_are_trained_and_nothing_that_mixes_is_asked():
    task = make_task("knowledge_graph", {"entities": 9, "relations": 3})
    train_questions = task.questions(0, 20_000, distinct=False)
    facts = {q for q in train_questions.prompts if len(q) == 3}
    assert len(facts) == 27
    asked = set()
    for split in ("train", "in_distribution", "new_combinations"):
        asked |= {q for q in task.questions(0, 5000, split=split, distinct=False).prompts if len(q) == 4}
    assert 0 < len(asked) < 81


def test_distinct_questions_run_out_and_say_so():
    task = make_task("parity", {"difficulties": [5], "harder": []})
    assert task.splits == SPLITS[:-1]
    parts = [task.questions(0, 100, split=split) for split in task.splits]
    assert sum(map(len, parts)) == 32
    assert len(task.questions(0, 100, distinct=False)) == 100
    with pytest.raises(ValueError, match=r"has no question of difficulty 1 in the split 'in_distribution'"):
        make_task("parity", {"difficulties": [1, 6], "held_out": 1e-9}).questions(0, 5, split="in_distribution",
                                                                                 difficulty=1)


def test_the_share_that_is_held_out_is_what_was_asked_for():
    for share in (0.1, 0.4):
        task = make_task("pointer_chasing", {"held_out": share})
        drawn = task.generate(np.random.default_rng(0), 3, 3000)
        split = task.split_of(drawn, 3)
        ordinary = np.isin(split, ["train", "in_distribution"])
        assert (split[ordinary] == "in_distribution").mean() == pytest.approx(share, abs=0.04)
    assert held_out_pairs(10, 10, 0.2, "x").sum() == 20
    assert held_out_pairs(3, 3, 0.01, "x").sum() == 1
    both = held_out_pairs(10, 10, 0.2, "x", symmetric=True)
    assert (both == both.T).all()
    assert both[np.triu_indices(10)].sum() == 11


# ---- refusals

@pytest.mark.parametrize(("name", "settings", "words"), [
    ("primes", {}, "no task is called 'primes'; there are addition, "),
    ("parity", {"modulus": 3}, "parity has no setting modulus; it has difficulties"),
    ("parity", {"difficulties": []}, "needs at least one difficulty"),
    ("parity", {"difficulties": [4, 5], "harder": [5, 6]}, "difficulty 5 of parity is both trained and harder"),
    ("parity", {"difficulties": 5}, r"difficulties of parity must be a list of whole numbers; got 5. One\? Pass \[5\]"),
    ("parity", {"harder": None}, "harder of parity must be a list"),
    ("parity", {"harder": [12, 3]}, "harder must lie beyond the difficulties in training, of which 10 .* got 3"),
    ("parity", {"seed": 1.5}, "seed must be a whole number from 0; got 1.5"),
    ("parity", [1], r"settings of a task must be given by name, .* got \[1\]"),
    ("addition", {"difficulties": []}, "addition needs at least one difficulty"),
    ("parity", {"difficulties": [0]}, "a length must be a whole number of at least 1 bit; got 0"),
    ("parity", {"held_out": 0}, "held_out must be above 0 and below 1; got 0"),
    ("parity", {"pair_share": 1.0}, "pair_share must be above 0 and below 1"),
    ("modular_addition", {"modulus": 2}, "modulus must be a whole number from 3 to 128"),
    ("modular_addition", {"modulus": 129}, r"modulus must be .* got 129"),
    ("modular_addition", {"difficulties": [1]}, "a number of summands must be"),
    ("addition", {"dial": "length"}, "dial must be one of carries, digits; got 'length'"),
    ("addition", {"digits": 3, "harder": [4]}, "at most 3 columns"),
    ("addition", {"digits": 0}, "digits must be a whole number from 1 to 9"),
    ("addition", {"difficulties": [-1]}, "a difficulty must be"),
    ("p_hop", {"text": 10}, "hops among 4 letters need a text of at least"),
    ("p_hop", {"alphabet": 27, "text": 300}, "from 2 to 26 letters"),
    ("p_hop", {"difficulties": [0]}, "a number of hops must be"),
    ("pointer_chasing", {"nodes": 4}, "a chain must have 1 to nodes - 1 steps"),
    ("pointer_chasing", {"nodes": 2}, "nodes must be a whole number from 3 to 26"),
    ("knowledge_graph", {"entities": 200}, "entities must be a whole number from 3 to 128; got 200"),
    ("knowledge_graph", {"difficulties": [2]}, "difficulties must hold 1, the facts"),
    ("knowledge_graph", {"relations": 0}, "relations must be a whole number"),
])
def test_a_task_that_cannot_be_is_refused(name, settings, words):
    with pytest.raises(ValueError, match=words):
        make_task(name, settings)


def test_questions_that_there_are_not_are_refused():
    task = make_task("parity")
    for settings, words in (({"split": "test"}, "split must be one of train"), ({"n": 0}, "n must be a whole number"),
                            ({"difficulty": 99}, "has the difficulties"), ({"length": 9}, "takes 18 bytes; got 9"),
                            ({"length": "a"}, "length must be a whole number of bytes; got 'a'")):
        with pytest.raises(ValueError, match=words):
            task.questions(0, **{"n": 5, **settings})


# ---- training

def naive(config, training, source, steps):
    """The training of a corpus as it was before there were tasks; of a task, by a loss written out."""
    model = NanoModel(config, seed=training.seed)
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == big], "weight_decay": decay}
              for big, decay in ((True, training.weight_decay), (False, 0.0))]
    optimizer = torch.optim.AdamW(groups, lr=training.rate(0), betas=(0.9, 0.95))
    for step in range(steps):
        rng = np.random.default_rng((training.seed, step))
        if isinstance(source, Task):
            windows, asked = source.batch(rng, n=training.batch_size, length=training.length + 1)
        else:
            windows = source.draw(rng, n=training.batch_size, length=training.length + 1)
        batch = torch.from_numpy(windows).long()
        recurrences = int(rng.integers(1, 2 * config.n_recurrences + 1))
        seeds = rng.integers(0, 2**62, size=training.batch_size).tolist()
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step)
        logits = model(batch[:, :-1], n_recurrences=recurrences, seeds=seeds)
        if isinstance(source, Task):
            chosen = torch.from_numpy(asked[:, 1:])
            loss = -torch.log_softmax(logits[chosen], -1).gather(1, batch[:, 1:][chosen][:, None]).mean()
        else:
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


SAMPLED = dataclasses.replace(SHORT, recurrences="uniform", seed=3)


def test_the_training_of_a_corpus_is_what_it_was_to_the_last_bit(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text("the quick brown fox " * 200)
    corpus = load_corpus(tmp_path / "text")
    config = dataclasses.replace(TINY, initial_state="random")
    model = train(config, SAMPLED, corpus, tmp_path / "m")
    for ours, theirs in zip(model.parameters(), naive(config, SAMPLED, corpus, SHORT.steps).parameters(), strict=True):
        assert torch.equal(ours, theirs)
    record = json.loads((tmp_path / "m" / "model.json").read_text())
    assert list(record["corpus"]) == ["name", "sha256", "files", "bytes", "held_out_bytes"]
    assert "accuracy" not in record


def test_the_training_of_a_task_asks_for_answers_alone(tmp_path):
    task = make_task("parity")
    model = train(TINY, SAMPLED, task, tmp_path / "m")
    for ours, theirs in zip(model.parameters(), naive(TINY, SAMPLED, task, SHORT.steps).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    record = json.loads((tmp_path / "m" / "model.json").read_text())
    assert record["corpus"] == task.describe()
    assert record["accuracy"] == accuracies(model, task, (1, 2, 4, 8, 32), n=4)
    assert set(record["accuracy"]) == set(SPLITS)
    text, asked = task.held_out_batch(n=64, length=19)
    with torch.no_grad():
        logits = model(torch.from_numpy(text[:, :-1]).long(), n_recurrences=2)
    chosen = torch.from_numpy(asked[:, 1:])
    by_hand = F.cross_entropy(logits[chosen], torch.from_numpy(text[:, 1:]).long()[chosen]).item()
    assert held_out_loss(model, task, n_recurrences=2, length=18) == pytest.approx(by_hand, rel=1e-5)
    assert not (tmp_path / "m" / "checkpoint.pt").exists()
    with pytest.raises(FileExistsError, match="other settings"):
        train(TINY, SAMPLED, make_task("parity", {"seed": 1}), tmp_path / "m")


def test_an_interrupted_training_of_a_task_ends_where_an_undisturbed_one_does(tmp_path, monkeypatch):
    task = make_task("knowledge_graph")
    short = dataclasses.replace(SAMPLED, length=task.length - 1)
    train(TINY, short, task, tmp_path / "a")
    real = TrainingConfig.rate
    with monkeypatch.context() as patch:
        patch.setattr(TrainingConfig, "rate", lambda self, step: real(self, step) if step < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(TINY, short, task, tmp_path / "b")
    train(TINY, short, task, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_window_that_no_question_fits_into_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"takes 18 bytes; got 17. Train with length=17 or more"):
        train(TINY, dataclasses.replace(SHORT, length=16), make_task("parity"), tmp_path / "m")


def test_an_answer_is_right_just_where_the_model_left_to_itself_writes_it():
    task, model = make_task("addition", {"digits": 2, "harder": []}), NanoModel(TINY, seed=0)
    questions = task.questions(0, 20)
    text = questions.text.copy()
    for r in (2, 3):
        for i in range(0, 20, 2):  # every other question gets the answer that the model writes after r loops
            at = int(questions.asked[i].argmax())
            tokens = torch.from_numpy(questions.text[i, :at]).long()[None]
            for _ in range(3):
                with torch.no_grad():
                    new = model(tokens, n_recurrences=r)[0, -1].argmax()
                tokens = torch.cat([tokens, new[None, None]], 1)
            text[i, at:at + 3] = tokens[0, at:].numpy()
        with torch.no_grad():
            right, finite = right_answers(model, dataclasses.replace(questions, text=text), [1, r], batch_size=7)
        assert right[::2, 1].all()
        assert not right[1::2].any()
        assert finite.all()


def test_the_command_line_trains_on_a_task(tmp_path, capsys):
    common = ["train", "--out", str(tmp_path / "m"), "--width", "16", "--n-heads", "2", "--steps", "2",
              "--batch-size", "2"]
    assert main([*common, "--task", "modular_addition", "--difficulty", "2:4", "--harder", "5", "--task-settings",
                 '{"modulus": 7}', "--monitor", "1"]) == 0
    said = capsys.readouterr().out
    assert "Right answers, new_combinations, by recurrences: 0." in said
    record = json.loads((tmp_path / "m" / "model.json").read_text())
    assert record["corpus"]["settings"]["difficulties"] == [2, 3]
    assert record["corpus"]["settings"]["modulus"] == 7
    assert record["training"]["length"] == 10
    assert "accuracy_harder" in (tmp_path / "m" / "monitor.jsonl").read_text()


@pytest.mark.parametrize(("options", "words"), [
    (["--difficulty", "2"], "go with --task"), (["--task", "sorting"], "no task is called 'sorting'"),
    (["--task", "parity", "--corpus", "x"], "does not go with --corpus"),
    (["--task", "parity", "--task-settings", "[1]"], "must be a JSON object"),
    (["--task", "parity", "--task-settings", "{"], "must be a JSON object")])
def test_the_command_line_refuses_what_does_not_fit(tmp_path, capsys, options, words):
    assert main(["train", "--out", str(tmp_path / "m"), *options]) == 1
    assert words in capsys.readouterr().err
