"""Run every benchmark of this folder once, tiny: `python benchmarks/run_all.py --tiny`. Fails when one fails."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    names = sorted(path.name for path in HERE.glob("*.py") if path.name != Path(__file__).name)
    failed = [name for name in names
              if print(f"== {name}", flush=True) or subprocess.call([sys.executable, HERE / name, *sys.argv[1:]])]
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    sys.exit(bool(failed))
