"""``make bench``: every benchmark, one after the other, each in a process of its own. Names as arguments choose some of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ORDER = (
    "cli_start",
    "containers",
    "start_path",
    "pull",
    "push",
    "archives",
    "layer_index",
    "http_server",
    "api",
    "networks",
    "registry",
    "builder",
)


def main() -> int:
    failed = []
    for name in sys.argv[1:] or [name for name in ORDER if (HERE / f"{name}.py").exists()]:
        print(f"\n== {name} ==", flush=True)
        if subprocess.run([sys.executable, HERE / f"{name}.py"]).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
