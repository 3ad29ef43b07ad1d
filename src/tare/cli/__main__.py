"""``python -m tare.cli``."""

import sys

from tare.cli.main import main

sys.exit(main())
