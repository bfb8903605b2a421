"""The ablation study: train, measure, report. One command a tier; interrupted, the same command goes on.

python reports/ablation/study.py --tier smoke --out FOLDER            (a minute)
python reports/ablation/study.py --tier cpu --out FOLDER              (some hours on two cores)
python reports/ablation/study.py --tier gpu --out FOLDER --device cuda --part 1/8   (a batch; at last without --part)
python reports/ablation/study.py --tier cpu --out FOLDER --report-only
python reports/ablation/study.py --replicate A/numbers.json B/numbers.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from conditions import TIERS, Condition, Tier, conditions
from contrasts import replicate
from measuring import WEIGHTS, measure_one, write_json
from mirrors import control_of, mirror_one
from pool import run_all
from training import folder_of, train_all

Tasks = dict[tuple, tuple]


def parse_seeds(text: str) -> list[int]:
    """"0-4" or "0,3,5"."""
    try:
        found = [seed for part in text.split(",") for first, dash, last in [part.partition("-")]
                 for seed in range(int(first), int(last if dash else first) + 1)]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"seeds are whole numbers such as 0-4 or 0,3,5, each once; got {text!r}")
    return found


def parse_part(text: str) -> tuple[int, int]:
    """"2/8": the second of eight parts."""
    first, _, last = text.partition("/")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"a part is written 2/8, for the second of eight; got {text!r}")
    return int(first), int(last)


def parse_blocks(text: str) -> list[int]:
    """"2" or "1,2"."""
    if not all(part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"blocks are whole numbers such as 1,2; got {text!r}")
    return [int(part) for part in text.split(",")]


def chosen(tier: Tier, seeds: Sequence[int], blocks: Sequence[int] | None,
           part: tuple[int, int] | None) -> tuple[list[Condition], list[tuple[Condition, int]]]:
    """Conditions, and the (condition, seed) of this part: all of one block and seed stay together."""
    cells = [c for c in conditions(tier) if blocks is None or c.block in blocks]
    if blocks is not None and (unknown := sorted(set(blocks) - {c.block for c in cells})):
        raise SystemExit(f"tier {tier.name} has no block of {unknown[0]}; it has {', '.join(map(str, tier.blocks))}.")
    places = {key: i for i, key in enumerate(dict.fromkeys((c.block, s) for c in cells for s in seeds))}
    own = [(c, s) for c in cells for s in seeds
           if part is None or places[c.block, s] % part[1] == part[0] - 1]
    return cells, own


def is_trained(out: Path, condition: Condition, seed: int) -> bool:
    """Whether its training has ended with a model."""
    return (folder_of(out, condition, seed) / "model.json").exists()


def measuring_tasks(out: Path, tier: Tier, own: Sequence[tuple[Condition, int]], device: str) -> Tasks:
    """Trained models that are there, and the untrained controls."""
    return {(c.name, s, weights): (out, tier, c, s, weights, device) for c, s in own
            for weights in (WEIGHTS if c.kind == "looped" else WEIGHTS[:1])
            if weights == "untrained" or is_trained(out, c, s)}


def mirroring_tasks(out: Path, tier: Tier, own: Sequence[tuple[Condition, int]], seeds: Sequence[int],
                    device: str) -> Tasks:
    """Models whose feed-forward control is there, too; of the controls themselves, the next seed's."""
    found: Tasks = {}
    for c, s in own:
        other = seeds[(list(seeds).index(s) + 1) % len(seeds)] if c.kind == "feed-forward" else s
        needed = [(c, s), (control_of(c), other if c.kind == "feed-forward" else s)]
        if all(is_trained(out, *one) for one in needed):
            found[c.name, s] = (out, tier, c, s, other, device)
    return found


def report(out: Path, tier: Tier, cells: Sequence[Condition], seeds: Sequence[int]) -> Path:
    """numbers.json from what was measured, and the report from that."""
    from pages import report_of
    from PIL import Image  # comes with matplotlib
    from records import write_records
    from results import gather, numbers_of

    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "numbers.json", numbers_of(gather(out, tier, cells, seeds)))
    write_records(out, results / "records.jsonl", cells, seeds)
    page = report_of(json.loads((results / "numbers.json").read_text())).save(results / "report",
                                                                             formats=("html", "md"))
    for figure in (results / "report" / "figures").iterdir():  # results are committed, and the page holds the SVGs
        if figure.suffix == ".png":
            with Image.open(figure) as picture:
                small = picture.convert("RGB").quantize(64)
            small.save(figure, optimize=True)
        else:
            figure.unlink()
    return page


def print_replication(first: str, second: str) -> int:
    """Hold one run's headlines against another's; 0 if all agree."""
    found = replicate(*(json.loads(Path(path).read_text()) for path in (first, second)))
    print("Agree: 0 lies in Welch's 95 % interval of the difference between the runs (a prediction interval: the\n"
          "difference has the variance of both runs, and lies within in 95 of 100 reruns of one recipe).")
    for one in found:
        print(f"{one['headline']}: first {one['first']:.4g}, second {one['second']:.4g}, difference "
              f"{one['difference']:.4g} [{one['low']:.4g}, {one['high']:.4g}]: "
              f"{'agrees' if one['agrees'] else 'DOES NOT AGREE'}; second within the first's own interval: "
              f"{'yes' if one['second_in_first'] else 'no'}, first within the second's: "
              f"{'yes' if one['first_in_second'] else 'no'}"
              + ("" if one["same_cells"] else "; the runs have different conditions"))
    return 0 if all(one["agrees"] for one in found) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=sorted(TIERS))
    parser.add_argument("--out", type=Path, help="folder of models, measurements and results")
    parser.add_argument("--seeds", type=parse_seeds, default=list(range(5)), help="default 0-4")
    parser.add_argument("--blocks", type=parse_blocks, help="block sizes, such as 2 or 1,2; default all")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--part", type=parse_part, help="2/8: train and measure the second of eight parts only")
    parser.add_argument("--no-training", action="store_true", help="measure what is trained, and report")
    parser.add_argument("--report-only", action="store_true", help="report what is measured")
    parser.add_argument("--replicate", nargs=2, metavar=("NUMBERS", "OTHERS"),
                        help="hold the headlines of two runs with other seeds against each other")
    given = parser.parse_args(arguments)
    if given.replicate:
        return print_replication(*given.replicate)
    if given.tier is None or given.out is None:
        parser.error("--tier and --out are needed, or --replicate")
    if given.workers < 1:
        parser.error(f"--workers must be at least 1; got {given.workers}")
    tier = TIERS[given.tier]
    cells, own = chosen(tier, given.seeds, given.blocks, given.part)
    if not given.report_only:
        if not given.no_training:
            ended = train_all(given.out, tier, own, workers=given.workers, device=given.device)
            if diverged := [key for key, how in ended.items() if how == "diverged"]:
                print(f"{len(diverged)} trainings diverged: " + ", ".join(f"{c} seed {s}" for c, s in diverged))
        run_all(measure_one, measuring_tasks(given.out, tier, own, given.device), workers=given.workers,
                title="measurements")
        run_all(mirror_one, mirroring_tasks(given.out, tier, own, given.seeds, given.device), workers=given.workers,
                title="mirroring")
    if given.part is not None and not given.report_only:
        print("This part is done. When all parts are, run once without --part for the report.")
        return 0
    print(report(given.out, tier, cells, given.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
