"""Can dynloop be believed? The committed evidence, from one command.

    python reports/validation/study.py --tier smoke --out /tmp/validation     # some seconds: it runs, in CI
    python reports/validation/study.py --tier full --out reports/validation/results
    python reports/validation/study.py --out reports/validation/results --render    # the pages again, from numbers.json

Four parts: analyzers against systems with known answers; Algorithm 1 and the calibrated classifier on known orbits; one
model in several number formats; an orbit that one token starts and others inherit. Every finished piece is kept in
OUT/pieces and not made again, so that an interrupted run goes on; --part computes some parts alone. numbers.json holds
every number with interval, n and unit, and the report in OUT/report is rendered from that file alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE.parents[1], HERE.parents[1] / "benchmarks"):  # for reports/, synthetic/ and the benchmarks
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

import torch  # noqa: E402

from dynloop import __version__  # noqa: E402
from dynloop.report import Report  # noqa: E402
from reports.numbers import Numbers  # noqa: E402
from reports.validation import classifiers, known_systems, precision, token_sources  # noqa: E402
from reports.validation.pieces import computed, fingerprint  # noqa: E402

PARTS = {"a": known_systems, "b": classifiers, "c": precision, "d": token_sources}
WORDS = {"a": "known systems", "b": "classifiers", "c": "precision", "d": "token sources"}
FORMATS = ("html", "md")


def study(tier: str, out: Path, parts: Sequence[str] = tuple(PARTS)) -> Numbers | None:
    """Compute what is missing; numbers.json once all parts are there."""
    torch.set_num_threads(1)
    found = {}
    for part, module in PARTS.items():
        if part in parts:
            found[part] = computed(out / "pieces" / part, fingerprint(module, tier, __version__), module.pieces(tier),
                                   label=WORDS[part])
    if len(found) < len(PARTS):
        return None
    numbers = Numbers({"study": "reports/validation", "tier": tier, "dynloop": __version__,
                       "torch": torch.__version__, "command": f"python reports/validation/study.py --tier {tier}"})
    for part, module in PARTS.items():
        module.add(found[part], numbers)
    numbers.save(out / "numbers.json")
    return numbers


def report_of(numbers: Numbers) -> Report:
    """The report: a function of the numbers and of nothing else."""
    sections = [section for module in PARTS.values() for section in module.sections(numbers)]
    findings = tuple(told for module in PARTS.values() for told in module.findings(numbers))
    return Report(title="Can dynloop be believed?", findings=findings, sections=tuple(sections),
                  estimates=numbers.estimates, provenance={
                      **numbers.provenance, "n_resamples": 10_000, "resample": "what each note names"})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=("smoke", "full"), default="smoke")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="compute this part alone; repeatable")
    parser.add_argument("--render", action="store_true", help="compute nothing: the pages from OUT/numbers.json")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.render:
        numbers: Numbers | None = Numbers.read(options.out / "numbers.json")
    else:
        numbers = study(options.tier, options.out, options.part or tuple(PARTS))
    if numbers is None:
        print(f"parts {', '.join(options.part)} are computed; run the rest for the numbers and the report.")
        return
    print(report_of(numbers).save(options.out / "report", formats=FORMATS))


if __name__ == "__main__":
    main()
