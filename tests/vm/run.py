"""Run tests in a small virtual machine with a cgroup v2 kernel:

    python tests/vm/run.py tests/kernel/test_cgroup.py [-k EXPRESSION ...]     pytest with these arguments
    python tests/vm/run.py -- COMMAND ARGUMENT ...                             any program of the host

The exit code is that of the program in the guest; 77 when this machine cannot run it (the reason is on stderr), 125 when the
guest broke off. TARE_VM_TIMEOUT: seconds (300).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import machine
from debian_kernel import Unavailable

REPOSITORY = Path(__file__).resolve().parents[2]
UNAVAILABLE, BROKEN = 77, 125


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    argv = arguments[1:] if arguments[0] == "--" else pytest + arguments
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TARE_VM": "1",
    }
    timeout = float(os.environ.get("TARE_VM_TIMEOUT", "300"))
    try:
        outcome = machine.run(argv, REPOSITORY, environment, timeout)
    except Unavailable as error:
        print(f"tare-vm: {error}", file=sys.stderr)
        return UNAVAILABLE
    print(f"tare-vm: {outcome.seconds:.1f} s", file=sys.stderr)
    if outcome.code is None:
        print(f"tare-vm: the machine broke off; its console ends:\n{outcome.console[-3000:]}", file=sys.stderr)
        return BROKEN
    return outcome.code if outcome.code >= 0 else 128 - outcome.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
