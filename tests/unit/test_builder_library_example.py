"""The example in docs/dockerfiles.md runs as it stands; the front half is pure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/dockerfiles.md"

SHOWN = """\
6 make -C /src ['/root/.cache']
0 base debian:13 []
1 build stage 0 [0]
3 - stage 0 [0, 1]
SecretsUsedInArgOrEnv (line 4): Do not use ARG or ENV instructions for sensitive data (ARG "API_TOKEN")
JSONArgsRecommended (line 10): JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
Dockerfile:2: unknown flag: --form (did you mean --from?)
     2 | COPY --form=build a b
  hint: flags of COPY are --from, --chown, --chmod, --link, --parents, --exclude
"""


def test_example(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (SHOWN, "")


def test_the_front_half_needs_nothing_of_the_engine() -> None:
    modules = "parser, instructions, expand, stages, flags, source, ignore, errors"
    code = f"import sys\nfrom tare.builder import {modules}\nprint(*sorted(name for name in sys.modules if name.startswith('tare')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[1] for name in loaded if "." in name} <= {"builder", "errors"}
    assert not {f"tare.builder.{name}" for name in ("solver", "service", "trees", "remotes")} & set(loaded)
