"""`python -m mivra`."""

import sys

from mivra.cli import main

sys.exit(main())
