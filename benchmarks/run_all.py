"""Run every benchmark of this folder once, tiny: `python benchmarks/run_all.py --tiny`. Fails when one fails."""

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    names = sorted(path.name for path in HERE.glob("*.py")
                   if path.name != Path(__file__).name and "__main__" in path.read_text(encoding="utf-8"))
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        if subprocess.call([sys.executable, HERE / name, *sys.argv[1:]]):
            failed.append(name)
        print(f"== {name}: {time.perf_counter() - began:.1f} s", flush=True)
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    sys.exit(bool(failed))
