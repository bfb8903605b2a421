"""Makes `synthetic` importable for the tests, and nothing else of this folder; says which files come first.

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

# Of two workers, the first compiles the kernels of the report while the second runs files that need few of them, and
# finds them compiled afterwards; then the longest ones, so that no worker is left alone with one in the end.
FIRST = ("test_report", "test_capture", "test_graph_statistics", "test_graph", "test_nano", "test_models", "test_store",
         "test_cli", "test_pages", "test_scale", "test_explorer", "test_figures")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
