"""``python -m dsonas``."""

import sys

from dsonas.commands.cli import main

sys.exit(main())
