"""Makes `synthetic` importable for the tests, and nothing else of this folder.

With the folder itself on the path, a stray `import dynloop` would find the checkout where the tests are to run against
the built wheel.
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent / "synthetic"

if "synthetic" not in sys.modules:
    found = importlib.util.spec_from_file_location("synthetic", HERE / "__init__.py",
                                                   submodule_search_locations=[str(HERE)])
    sys.modules["synthetic"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(sys.modules["synthetic"])
