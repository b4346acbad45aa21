"""``python -m dsonas``."""

import sys

from dsonas.cli import main

sys.exit(main())
