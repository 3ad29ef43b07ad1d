"""Repository names and tags (OCI distribution specification, "Pulling manifests")."""

from __future__ import annotations

import re

NAME_LIMIT = 255
_PART = r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"(?=.{{1,{NAME_LIMIT}}}\Z){_PART}(?:/{_PART})*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
