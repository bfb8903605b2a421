"""`python -m dynloop`."""

import sys

from dynloop.cli import main

sys.exit(main())
