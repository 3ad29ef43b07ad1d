"""The script of the read-only interpreter: ``python -I -S entry.py PACKAGE_PARENT ARGUMENTS...`` (see ``readonly``)."""

import sys

sys.path.insert(0, sys.argv[1])
del sys.argv[1]

from tare.runtime.cli.main import finish  # noqa: E402

sys.exit(finish())
