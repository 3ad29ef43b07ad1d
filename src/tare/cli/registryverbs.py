"""``registry serve``, ``gc``, ``scrub``: a registry of one's own. The work is done by another program (``tare.api.registry.serve``)."""

from __future__ import annotations

import os
import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options

_PASSED = ("tls-cert", "tls-key", "htpasswd", "log-level")
_SWITCHES = ("anonymous-pull", "anonymous-push", "read-only", "no-delete")
_ROOT = (
    "root",
    "",
    "string",
    "Directory with the registry's content, or s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]",
    "/var/lib/tare-registry",
)


def _become(*arguments: str) -> int:
    sys.stdout.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-m", "tare.api.registry.serve", *arguments])
    except OSError as error:
        raise CliError(f"cannot start the registry: {error.strerror}") from None


def _serve(context: Context, options: Options) -> int:
    arguments = ["serve", "--root", options.text("root")]
    for address in options.items("listen"):
        arguments += ["--listen", address]
    for name in _PASSED:
        if options.text(name):
            arguments += [f"--{name}", options.text(name)]
    return _become(*arguments, *(f"--{name}" for name in _SWITCHES if options.on(name)))


def _gc(context: Context, options: Options) -> int:
    return _become("gc", "--root", options.text("root"))


def _scrub(context: Context, options: Options) -> int:
    return _become("scrub", "--root", options.text("root"))


SERVE = Command(
    "registry serve",
    "registry serve [OPTIONS]",
    "Serve images to docker, podman, skopeo and Tare (OCI distribution 1.1)",
    _serve,
    (
        ("anonymous-pull", "", "bool", "Let everybody read, also where writing needs a password"),
        ("anonymous-push", "", "bool", "Let everybody write, also from other machines"),
        ("htpasswd", "", "string", "File with names and bcrypt passwords, made with 'htpasswd -B'"),
        ("listen", "", "list", "Address: HOST:PORT or unix://PATH (default 127.0.0.1:5000); may be given several times"),
        ("log-level", "", "string", '"debug", "info" (a line for each request), "warning" or "error"', "warning"),
        ("no-delete", "", "bool", "Refuse to delete tags, manifests and blobs"),
        ("read-only", "", "bool", "Refuse to write"),
        _ROOT,
        ("tls-cert", "", "string", "Certificate (PEM), with the chain"),
        ("tls-key", "", "string", "Its key (PEM)"),
    ),
    most=0,
    examples=(
        "tare registry serve --root ~/registry",
        "tare registry serve --listen 0.0.0.0:443 --tls-cert c.pem --tls-key k.pem --htpasswd users --anonymous-pull",
    ),
)
GC = Command(
    "registry gc",
    "registry gc [OPTIONS]",
    "Remove blobs that no manifest names (a serving registry does it by itself)",
    _gc,
    (_ROOT,),
    most=0,
)
SCRUB = Command("registry scrub", "registry scrub [OPTIONS]", "Verify every blob's digest", _scrub, (_ROOT,), most=0)
