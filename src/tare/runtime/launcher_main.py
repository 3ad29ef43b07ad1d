"""The script that the launcher's interpreter runs: ``python -I -S launcher_main.py PACKAGE_PARENT JSON``.

It only makes the package importable: with -I and -S there is no site directory and no environment that could lead the interpreter astray.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

from tare.runtime.launcher import main

main(json.loads(sys.argv[2]))
