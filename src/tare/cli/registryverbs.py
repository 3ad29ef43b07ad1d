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

_PASSED = ("config", "url", "state", "mirror", "tls-cert", "tls-key", "htpasswd", "log-level", "log-format", "access-log", "audit-log")
_LISTS = ("listen", "metrics-listen", "cache")
_SWITCHES = ("anonymous-pull", "anonymous-push", "read-only", "no-delete", "tokens", "no-page", "check")
_ROOT = (
    "root",
    "",
    "string",
    "Directory with the registry's content, or s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME] (default /var/lib/tare-registry)",
)
_CONFIG = ("config", "", "string", "Configuration file (TOML); TARE_REGISTRY_... in the environment and flags win over it")


def _become(*arguments: str) -> int:
    sys.stdout.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-m", "tare.api.registry.serve", *arguments])
    except OSError as error:
        raise CliError(f"cannot start the registry: {error.strerror}") from None


def _serve(context: Context, options: Options) -> int:
    arguments = ["serve", *_place(options)]
    for name in _LISTS:
        for value in options.items(name):
            arguments += [f"--{name}", value]
    for name in _PASSED[1:]:
        if options.text(name):
            arguments += [f"--{name}", options.text(name)]
    return _become(*arguments, *(f"--{name}" for name in _SWITCHES if options.on(name)))


def _place(options: Options) -> list[str]:
    return [word for name in ("root", "config") if options.text(name) for word in (f"--{name}", options.text(name))]


def _gc(context: Context, options: Options) -> int:
    return _become("gc", *_place(options))


def _scrub(context: Context, options: Options) -> int:
    return _become("scrub", *_place(options))


SERVE = Command(
    "registry serve",
    "registry serve [OPTIONS]",
    "Serve images to docker, podman, skopeo and Tare (OCI distribution 1.1)",
    _serve,
    (
        ("access-log", "", "string", 'File for a JSON line about each request ("-": standard output)'),
        ("anonymous-pull", "", "bool", "Let everybody read, also where writing needs a password"),
        ("anonymous-push", "", "bool", "Let everybody write, also from other machines"),
        ("audit-log", "", "string", "File for a JSON line about each change, refusal and token"),
        ("cache", "", "list", "Pull-through cache: repositories below REGISTRY/ (or NAME/, as NAME=REGISTRY) are those of that registry"),
        ("check", "", "bool", "Check the settings, print them all and end"),
        _CONFIG,
        ("htpasswd", "", "string", "File with names and bcrypt passwords, made with 'htpasswd -B'"),
        ("listen", "", "list", "Address: HOST:PORT or unix://PATH (default 127.0.0.1:5000); may be given several times"),
        ("log-format", "", "string", '"text" or "json"'),
        ("log-level", "", "string", '"debug", "info" (a line for each request), "warning" (default) or "error"'),
        ("metrics-listen", "", "list", "Address for /metrics (Prometheus) and /healthz"),
        ("mirror", "", "string", "Cache that also serves names without a prefix, for docker's registry-mirrors"),
        ("no-delete", "", "bool", "Refuse to delete tags, manifests and blobs"),
        ("no-page", "", "bool", "Serve no web page"),
        ("read-only", "", "bool", "Refuse to write"),
        _ROOT,
        ("state", "", "string", "Directory for keys and undelivered events, where the content is in a bucket"),
        ("tls-cert", "", "string", "Certificate (PEM), with the chain"),
        ("tls-key", "", "string", "Its key (PEM)"),
        ("tokens", "", "bool", "Give tokens for passwords (always so with --htpasswd and --anonymous-pull together)"),
        ("url", "", "string", "How clients reach the registry, behind a proxy: https://HOST"),
    ),
    most=0,
    examples=(
        "tare registry serve --root ~/registry",
        "tare registry serve --listen 0.0.0.0:443 --tls-cert c.pem --tls-key k.pem --htpasswd users --anonymous-pull",
        "tare registry serve --cache docker.io --mirror docker.io      a mirror for docker's registry-mirrors",
    ),
)
GC = Command(
    "registry gc",
    "registry gc [OPTIONS]",
    "Remove blobs that no manifest names (a serving registry does it by itself)",
    _gc,
    (_ROOT, _CONFIG),
    most=0,
)
SCRUB = Command("registry scrub", "registry scrub [OPTIONS]", "Verify every blob's digest", _scrub, (_ROOT, _CONFIG), most=0)
