"""`dynloop ...`: one command from a model to a report. Heavy modules load when a command runs, not for --help."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from dynloop.nano.config import INJECTIONS, NORMS, RECIPES, SAMPLING, STARTS, NanoConfig, TrainingConfig
from dynloop.version import __version__

CHOICES = {"injection": INJECTIONS, "norm": NORMS, "initial_state": STARTS, "recurrences": SAMPLING}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 refused or failed (one sentence says why), 2 wrong usage,
    130 interrupted."""
    options = _parser().parse_args(arguments)
    # threads that wait for each other sleep instead of spinning: on a machine with other work, a capture that takes
    # 3 seconds takes 2 minutes otherwise
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("\ndynloop: interrupted. What was finished is kept; the same command goes on from there.",
              file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        where = f" while writing {error.filename}" if error.filename else ""
        print(f"dynloop: the disk is full{where} ({error.strerror}). Make room or choose another disk; what was "
              "finished is kept, and the same command goes on from there." if full else f"dynloop: {error}",
              file=sys.stderr)
        return 1
    except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        if os.environ.get("DYNLOOP_TRACEBACK"):
            raise
        text = str(error) or type(error).__name__
        if "No space left on device" in text:  # safetensors raises it as its own error
            text += ". Make room or choose another disk; what was finished is kept, and the same command goes on."
        print(f"dynloop: {text}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dynloop", description="The dynamics of looped language models: record, measure, report.",
        epilog="Start with: dynloop quickstart")
    parser.add_argument("--version", action="version", version=f"dynloop {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".",
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(run=run)
        return sub

    def output(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--resample", default="prompt", metavar="LABEL",
                         help="what is independent: prompts, never tokens; or a nesting, such as 'seed > prompt'")
        sub.add_argument("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples")
        sub.add_argument("--format", type=_formats, default="html,md,latex,csv,json", metavar="LIST", dest="formats",
                         help="some of html, md, latex, csv, parquet, json")
        sub.add_argument("--title", default="How the loop settles", help="heading of the report")
        sub.add_argument("--workers", type=int, metavar="N",
                         help="processes that measure a store side by side; by default this one alone")
        sub.add_argument("--resume", metavar="DIR",
                         help="folder that keeps finished answers of stores: the same command goes on from there")

    sub = command("quickstart", _quickstart,
                  "capture the three shipped models and an untrained control, analyse them, write a report")
    sub.add_argument("--out", default="dynloop-quickstart", metavar="DIR", help="folder for stores and report")
    sub.add_argument("--recurrences", type=int, default=128, metavar="N", help="applications of the block")
    sub.add_argument("--prompts", type=int, default=64, metavar="N", help="how many of the 64 shipped prompts")

    sub = command("train", _train, "train a small looped model on the standard library's source or a folder of text")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder of the model; an unfinished one is resumed")
    sub.add_argument("--recipe", choices=list(RECIPES), help="start from a shipped model's settings")
    sub.add_argument("--corpus", metavar="DIR", help="folder of text; by default the standard library's source")
    sub.add_argument("--task", metavar="NAME", help="train on questions of a generated task instead, such as parity")
    sub.add_argument("--difficulty", type=_positions, metavar="LIST",
                     help="difficulties of the task in training, such as 1,2,3 (or 1:4); by default the task's own")
    sub.add_argument("--harder", type=_positions, metavar="LIST", help="difficulties that are kept from training")
    sub.add_argument("--task-settings", metavar="JSON", default="{}",
                     help="other settings of the task, such as '{\"modulus\": 31}'")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    sub.add_argument("--threads", type=int, metavar="N", help="CPU threads; by default torch's choice")
    sub.add_argument("--monitor", type=_every, metavar="N",
                     help="measure the loop every N steps, or 'auto' (at most 1 %% of the time), into monitor.jsonl")
    for config in (NanoConfig, TrainingConfig):
        for field in dataclasses.fields(config):
            flag = "--" + field.name.replace("_", "-")
            text = f"(default {field.default}, or the recipe's)"
            common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
            if isinstance(field.default, bool):
                sub.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
            elif field.name in CHOICES:
                sub.add_argument(flag, choices=CHOICES[field.name], **common)
            else:
                sub.add_argument(flag, type=type(field.default), metavar="N", **common)

    sub = command("capture", _capture, "run a model on prompts and record its states")
    sub.add_argument("model", metavar="MODEL", help=f"a shipped one ({', '.join(RECIPES)}), a folder from train, or a "
                                                    "folder or name of a checkpoint of a known family")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder of the store; an unfinished one is resumed")
    sub.add_argument("--prompts", metavar="FILE", help="text file, one prompt a line, or a .json list of texts or of "
                                                       "lists of token numbers; by default the 64 shipped prompts")
    sub.add_argument("--recurrences", type=int, default=128, metavar="N", help="applications of the block")
    sub.add_argument("--tokens", type=_positions, metavar="LIST",
                     help="positions to record, such as 0,5,-1 or 3:96:4; by default all")
    sub.add_argument("--layers", type=_layers, metavar="LIST", help="layers to record, from 1, or state for the loop "
                                                                    "state alone; by default all")
    sub.add_argument("--start", choices=["model", "random"], default="model", help="whose initial state")
    sub.add_argument("--starts", type=int, default=1, metavar="N", help="initial states a prompt")
    sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float64"], default="float32",
                     help="in which states are stored")
    sub.add_argument("--seed", type=int, default=0, metavar="N",
                     help="of random initial states: prompt i uses seed + i")
    sub.add_argument("--batch-size", type=int, metavar="N", help="prompts that run together; by default what fills a "
                                                                 "shard")
    sub.add_argument("--untrained", type=int, nargs="?", const=0, default=argparse.SUPPRESS, metavar="SEED",
                     help="record the untrained control: the same architecture with new weights of this seed (0)")
    sub.add_argument("--attention", action="store_true",
                     help="take statistics of the loop's attention maps in the same run")
    sub.add_argument("--attention-pairs", choices=["layer", "all"],
                     help="with them, keep the distances between all maps of each layer along the loop, or between "
                          "those of all layers")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")

    sub = command("inspect", _inspect, "find the loop of a model and print a specification to start from")
    sub.add_argument("model", metavar="MODEL", help="a shipped one, a folder, a checkpoint's name, or "
                                                    "package.module:function, which is called and gives a torch module")
    sub.add_argument("--loops", metavar="NAME", help="what sets the number of loops: an argument of the forward pass, "
                                                     "or an attribute such as config.num_hidden_layers; known families "
                                                     "need none")
    sub.add_argument("--at", type=_positions, default=[2, 3], metavar="A,B", help="the two numbers of loops to run")
    sub.add_argument("--length", type=int, default=8, metavar="N", help="tokens of the prompt that it runs on")

    sub = command("analyze", _analyze, "measure stores or tensor files and write a report")
    sub.add_argument("recordings", nargs="+", metavar="STORE",
                     help="folder from capture, or a .npy, .npz, .pt, .pth or .safetensors file (with --axes)")
    sub.add_argument("--report", required=True, metavar="DIR", help="folder of the report")
    sub.add_argument("--axes", metavar="NAMES", help="axes of a tensor file, such as prompt,token,recurrence,feature")
    sub.add_argument("--key", help="which tensor of a file that holds several")
    sub.add_argument("--resolution", type=float, help="relative spacing of the dtype the model computed in, where a "
                                                      "tensor file's dtype is another one (bfloat16: 0.0078125)")
    output(sub)

    sub = command("report", _report, "compare runs: stores, studies and reports, in one report")
    sub.add_argument("runs", nargs="+", metavar="RUN",
                     help="folder from capture, study (.nc), or folder of a report with its study; the others are "
                          "compared with the first")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder of the report")
    output(sub)

    sub = command("info", _info, "say what a store holds and where it came from")
    sub.add_argument("store", metavar="STORE", help="folder from capture")
    sub.add_argument("--verify", action="store_true", help="hold every shard against its checksum")

    sub = command("explore", _explore, "write an interactive page for one prompt of a store")
    sub.add_argument("store", metavar="STORE", help="folder from capture")
    sub.add_argument("--prompt", type=int, required=True, metavar="N", help="number of the prompt, from 0")
    sub.add_argument("--layer", type=int, metavar="N", help="layer, from 1; by default the last")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder of the page, or a file in .html")
    return parser


def _positions(text: str) -> list[int]:
    """"0,5,-1" or "3:96:4" -> positions."""
    try:
        if ":" in text:
            return list(range(*(int(part) for part in text.split(":"))))
        return [int(part) for part in text.split(",")]
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positions; write 0,5,-1 or 3:96:4") from None


def _every(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps; write 500, or auto") from None


def _layers(text: str) -> list[int] | str:
    return text if text == "state" else _positions(text)


def _formats(text: str) -> list[str]:
    known = ("html", "md", "latex", "csv", "parquet", "json")
    formats = [part.strip() for part in text.split(",")]
    if wrong := [part for part in formats if part not in known]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no format; choose among {', '.join(known)}")
    return formats


def _quickstart(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    import dynloop
    from dynloop.models import load
    from dynloop.models.untrained import untrained
    from dynloop.nano import shipped_prompts
    from dynloop.report import build_report

    prompts = shipped_prompts()
    if not 2 <= options.prompts <= len(prompts):
        raise ValueError(f"--prompts must lie between 2 and {len(prompts)}; got {options.prompts}. For prompts of your "
                         "own use dynloop capture --prompts FILE.")
    out = Path(options.out)
    prompts = prompts[:options.prompts]
    positions = range(3, len(prompts[0]), 4)  # every fourth token: a quarter of the disk
    models = [*map(load, RECIPES), untrained(next(iter(RECIPES)))]
    stores = [dynloop.capture(model, prompts, out=out / "stores" / model.name, n_recurrences=options.recurrences,
                              tokens=positions) for model in models]
    report = build_report(stores, title="How three small looped models settle")
    page = report.save(out / "report")
    print("Findings:")
    for finding in report.findings:
        print(f"  - {finding}")
    print(f"\nReport: {page.resolve()}\nStores: {(out / 'stores').resolve()} "
          f"({sum(s.n_bytes for s in stores) / 2**20:.0f} MiB)\nTook {time.perf_counter() - began:.0f} s.")


def _train(options: argparse.Namespace) -> None:
    import torch

    from dynloop.nano import load_corpus, train

    model, training = RECIPES[options.recipe] if options.recipe else (NanoConfig(), TrainingConfig())
    given = vars(options)
    model = dataclasses.replace(model, **{f.name: given[f.name] for f in dataclasses.fields(model) if f.name in given})
    training = dataclasses.replace(training, **{f.name: given[f.name] for f in dataclasses.fields(training)
                                                if f.name in given})
    _check_device(options.device)
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1; got {options.threads}.")
        torch.set_num_threads(options.threads)
    task = _task(options)
    if task is not None and "length" not in given:
        training = dataclasses.replace(training, length=task.length - 1)
    corpus = task or load_corpus(options.corpus, least=4 * (training.length + 1))
    watch: Any = None
    if options.monitor is not None:
        from dynloop.monitoring import LoopMonitor

        probe = corpus.held_out_windows(n=4, length=task.length if task else min(32, training.length)).tolist()

        def watch(trained: torch.nn.Module) -> Any:
            return LoopMonitor(trained, probe, every=options.monitor, log=options.out, task=task).step
    train(model, training, corpus, options.out, device=options.device, name=options.recipe, monitor=watch)
    record = json.loads((Path(options.out) / "model.json").read_text())
    losses = ", ".join(f"{loss:.3f} at {n}" for n, loss in record["held_out_loss"].items())
    for split, own in record.get("accuracy", {}).items():
        print(f"Right answers, {split}, by recurrences: " + ", ".join(f"{a:.3f} at {n}" for n, a in own.items()))
    print(f"Model: {Path(options.out).resolve()}\nHeld-out loss in nats per byte by recurrences: {losses}\n"
          f"Next: dynloop capture {options.out} --out STORE")


def _task(options: argparse.Namespace) -> Any:
    """The task that the options name; None for none."""
    try:
        settings = json.loads(options.task_settings)
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"--task-settings must be a JSON object, such as '{{\"modulus\": 31}}'; got "
                         f"{options.task_settings!r}.")
    settings |= {name: own for name, own in (("difficulties", options.difficulty), ("harder", options.harder))
                 if own is not None}
    if options.task is None:
        if settings:
            raise ValueError("--difficulty, --harder and --task-settings go with --task. Name a task, or leave them "
                             "out.")
        return None
    if options.corpus is not None:
        raise ValueError("--task makes its own questions; it does not go with --corpus. Leave one of them out.")
    from dynloop.nano.tasks import make_task

    return make_task(options.task, settings)


def _capture(options: argparse.Namespace) -> None:
    import torch

    import dynloop
    from dynloop.models import load
    from dynloop.models.untrained import untrained
    from dynloop.nano import shipped_prompts

    _check_device(options.device)
    model = untrained(options.model, seed=options.untrained) if "untrained" in options else load(options.model)
    model.module.to(options.device)
    prompts = shipped_prompts() if options.prompts is None else _read_prompts(Path(options.prompts))
    store = dynloop.capture(model, prompts, out=options.out, n_recurrences=options.recurrences, tokens=options.tokens,
                            layers=options.layers, seed=options.seed, start=options.start,
                            n_starts=options.starts,
                            dtype=getattr(torch, options.dtype), batch_size=options.batch_size,
                            attention=options.attention or options.attention_pairs is not None,
                            attention_pairs=options.attention_pairs)
    print(f"{store}\nNext: dynloop analyze {options.out} --report REPORT")


def _inspect(options: argparse.Namespace) -> None:
    import importlib

    import torch

    from dynloop.models import inspect_model, load
    from dynloop.models.hooked_block import loop_count
    from dynloop.settings import check_whole

    check_whole("--length", options.length, 1, "a whole number of at least 1 token (the default is 8)")
    if len(options.at) != 2:
        raise ValueError(f"--at needs two numbers of loops, such as 2,3; got {options.at}.")
    home, _, factory = options.model.partition(":")
    if factory and not Path(options.model).exists():
        if options.loops is None:
            raise ValueError("--loops must say what sets the number of loops: an argument of the forward pass, or an "
                             "attribute such as config.num_hidden_layers.")
        sys.path.insert(0, os.getcwd())  # as `python -m` does
        try:
            module = getattr(importlib.import_module(home), factory)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{options.model} cannot be imported: {error}. Name package.module:function.") from error
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"{options.model}() must give a torch module; it gave {type(module).__name__}.")
        tokens = torch.zeros(1, options.length, dtype=torch.long)

        def run(n: int) -> None:
            with loop_count(module, options.loops, n) as argument:
                module(tokens, **argument)
    else:
        looped = load(options.model)
        module = looped.module
        tokens = torch.zeros(1, looped.n_tokens or options.length, dtype=torch.long, device=looped.device)
        paths = {part: path for path, part in module.named_modules()}
        print(f"{looped.name} is of the family {looped.provenance.get('family')}; its specification reads, in order:")
        for number, point in enumerate(looped.points, start=1):
            copies = ", ".join(paths.get(part, "?") for part in point.modules)
            print(f"  layer {number}, stack {point.stack}: {point.reads} of {copies}")
        print()

        def run(n: int) -> None:
            start = looped.initial_state(looped.embed(tokens), seeds=[0])
            looped.run(tokens, n * looped.multiple, start)
    print(inspect_model(module, run, loops=tuple(options.at), loop_argument=options.loops))


def _read_prompts(path: Path) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}. Name a text file with one prompt a line, or a .json list.")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [line for line in text.splitlines() if line.strip()]
        prompts = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}. Prompts are UTF-8 text, one a line, or a .json list.") \
            from None
    if not isinstance(prompts, list) or not all(
            isinstance(p, str) or (isinstance(p, list) and all(isinstance(t, int) for t in p)) for p in prompts):
        raise ValueError(f"{path} must hold a list of texts or of lists of token numbers.")
    return prompts


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]} Use --device cpu.") \
            from None


def _analyze(options: argparse.Namespace) -> None:
    import dynloop

    def read() -> list[Any]:
        sources: list[Any] = []
        for name in options.recordings:
            if not Path(name).exists():
                raise FileNotFoundError(f"no recording {name}. Name a folder that `dynloop capture` wrote, or a tensor "
                                        "file.")
            if Path(name).is_dir():
                for flag in ("axes", "key", "resolution"):
                    if getattr(options, flag) is not None:
                        raise ValueError(f"--{flag} is for tensor files; {name} is a store, which knows it. Leave it "
                                         "out.")
                sources.append(dynloop.open_store(name))
            elif options.axes is None:
                raise ValueError(f"{name} is a tensor file: say what its axes are, for example --axes "
                                 "prompt,token,recurrence,feature.")
            else:
                sources.append(dynloop.load(name, axes=options.axes, key=options.key, resolution=options.resolution,
                                            labels={} if "model" in options.axes.split(",") else
                                            {"model": Path(name).stem}))
        return sources

    _write(options, options.report, read, comparing=False)


def _report(options: argparse.Namespace) -> None:
    from dynloop.report.sources import open_run

    _write(options, options.out, lambda: [open_run(name) for name in options.runs], comparing=True)


def _write(options: argparse.Namespace, folder: str, read: Any, *, comparing: bool) -> None:
    """Build a report of what `read` gives and save it; what is wrong with the folder is said before anything runs."""
    from dynloop.report import build_report, check_formats, check_report_folder

    check_formats(options.formats)
    check_report_folder(folder)
    report = build_report(read(), resample=options.resample, n_resamples=options.resamples, title=options.title,
                          comparing=comparing, workers=options.workers, resume=options.resume)
    page = report.save(folder, formats=options.formats)
    for finding in report.findings:
        print(f"- {finding}")
    print(f"Report: {page.resolve()}")


def _info(options: argparse.Namespace) -> None:
    import dynloop

    store = dynloop.open_store(options.store)
    store.check()
    print(f"{store.folder}: {'complete' if store.complete else 'UNFINISHED; run the same capture again to go on'}")
    print(f"{store.n_orbits:,} orbits of {store.n_steps} steps in {store.dim} dimensions ({store.dtype}), "
          f"{store.n_shards} shards, {store.n_bytes / 2**20:.0f} MiB")
    for name, values in store.labels.items():
        distinct = sorted(set(values.tolist()))
        shown = ", ".join(map(str, distinct[:8])) + (f", ... ({len(distinct)})" if len(distinct) > 8 else "")
        print(f"  label {name}: {shown}")
    for name, value in store.header.items():
        if name not in ("format", "version", "labels"):
            print(f"  {name}: {json.dumps(value)}")
    if options.verify:
        store.verify()
        print("every shard has the checksum of the manifest")


def _explore(options: argparse.Namespace) -> None:
    import dynloop
    from dynloop.report.explorer import explorer

    page = explorer(dynloop.open_store(options.store), prompt=options.prompt, layer=options.layer, out=options.out)
    print(f"Page: {page.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
