"""``system certs``: an authority, a server's and a client's certificate, so that a daemon can be reached over TCP with both sides verified.

    DIR/ca.pem  ca-key.pem              the authority; kept when it is there, so that later certificates are signed by the same
    DIR/server-cert.pem  server-key.pem for tared: --tlsverify --tlscacert --tlscert --tlskey
    DIR/cert.pem  key.pem               for clients, under the names that docker looks for in DOCKER_CERT_PATH

Keys are elliptic (P-256), readable by their owner alone. All are made in a directory beside and moved in place when everything has worked.
The openssl program does the cryptography: Python's standard library can use certificates but not make them.
"""

from __future__ import annotations

import os
import re
import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options

DIRECTORY = "/etc/tare/tls"
_AUTHORITY = ("ca.pem", "ca-key.pem")
_SERVER = ("server-cert.pem", "server-key.pem")
_CLIENT = ("cert.pem", "key.pem")
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_NAME = re.compile(r"[A-Za-z0-9_.:*-]{1,253}")


def _openssl(*arguments: str) -> None:
    import subprocess

    try:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise CliError("making certificates needs the openssl program: apt-get install openssl") from None
    if done.returncode != 0:
        raise CliError(f"openssl {arguments[0]} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")


def _authority(folder: str, days: int) -> None:
    name = "/CN=Tare authority of " + os.uname().nodename[:40]
    extensions = ("-addext", "basicConstraints=critical,CA:TRUE,pathlen:0", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    certificate, key = (os.path.join(folder, file) for file in _AUTHORITY)
    _openssl("req", "-x509", *_KEY, "-sha256", "-days", str(days), "-subj", name, *extensions, "-keyout", key, "-out", certificate)


def _signed(folder: str, files: tuple[str, str], subject: str, days: int, usage: str, names: str = "") -> None:
    """A key and a certificate for it, signed by the folder's authority."""
    certificate, key = (os.path.join(folder, file) for file in files)
    request, settings = os.path.join(folder, "request"), os.path.join(folder, "settings")
    lines = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]
    if names:
        lines.append(f"subjectAltName={names}")
    with open(settings, "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    _openssl("req", "-new", *_KEY, "-sha256", "-subj", f"/CN={subject}", "-keyout", key, "-out", request)
    authority = ("-CA", os.path.join(folder, _AUTHORITY[0]), "-CAkey", os.path.join(folder, _AUTHORITY[1]))
    serial = str(int.from_bytes(os.urandom(16), "big") >> 1)
    _openssl(
        "x509", "-req", "-sha256", "-in", request, *authority, "-set_serial", serial, "-days", str(days), "-extfile", settings,
        "-out", certificate,
    )  # fmt: skip
    os.unlink(request)
    os.unlink(settings)


def alternative_names(hosts: list[str]) -> str:
    """The ``subjectAltName`` of a server that is reached as ``hosts``: names and addresses."""
    import ipaddress

    found = []
    for host in hosts:
        bare = host.strip("[]")
        try:
            found.append(f"IP:{ipaddress.ip_address(bare)}")
        except ValueError:
            if _NAME.fullmatch(bare) is None or ":" in bare:
                raise CliError(f"{host} is neither a host name nor an address") from None
            found.append(f"DNS:{bare}")
    return ",".join(dict.fromkeys(found))


def _certs(context: Context, options: Options) -> int:
    folder = os.path.abspath(options.text("dir"))
    days = options.number("days")
    if days < 1:
        raise CliError(f"a certificate cannot be valid for {days} days")
    hosts = options.items("host") or [os.uname().nodename, "localhost", "127.0.0.1", "::1"]
    names = alternative_names(hosts)
    client = options.text("client")
    if _NAME.fullmatch(client) is None:
        raise CliError(f"{client} is no name for a client")
    present = [file for file in (*_SERVER, *_CLIENT) if os.path.exists(os.path.join(folder, file))]
    if present and not options.on("force"):
        raise CliError(f"{folder} has {', '.join(present)} already: use --force to replace them, or --dir for another place")
    _make(folder, days, hosts[0], names, client)
    _explain(folder, hosts)
    return 0


def _make(folder: str, days: int, server: str, names: str, client: str) -> None:
    import shutil
    import tempfile

    os.makedirs(folder, mode=0o700, exist_ok=True)
    made = tempfile.mkdtemp(prefix=".making-", dir=folder)
    previous = os.umask(0o077)
    try:
        kept = all(os.path.exists(os.path.join(folder, file)) for file in _AUTHORITY)
        if kept:
            for file in _AUTHORITY:
                shutil.copyfile(os.path.join(folder, file), os.path.join(made, file))
        else:
            _authority(made, max(days, 3650))
        _signed(made, _SERVER, server.strip("[]")[:64], days, "serverAuth", names)
        _signed(made, _CLIENT, client[:64], days, "clientAuth")
        for file in (*(() if kept else _AUTHORITY), *_SERVER, *_CLIENT):
            path = os.path.join(made, file)
            os.chmod(path, 0o600 if "key" in file else 0o644)
            os.replace(path, os.path.join(folder, file))
    finally:
        os.umask(previous)
        shutil.rmtree(made, ignore_errors=True)


def _explain(folder: str, hosts: list[str]) -> None:
    host = f"[{hosts[0]}]" if ":" in hosts[0] and not hosts[0].startswith("[") else hosts[0]
    flags = f"--tlsverify --tlscacert {folder}/ca.pem --tlscert {folder}/server-cert.pem --tlskey {folder}/server-key.pem"
    sys.stdout.write(
        f"Certificates are in {folder}. Keep ca-key.pem secret: who has it can make clients.\n\n"
        f"The daemon:\n  tared -H tcp://0.0.0.0:2376 -H unix:///run/tare/tare.sock {flags}\n\n"
        f"A client, with ca.pem, cert.pem and key.pem in ~/.docker:\n  tare -H tcp://{host}:2376 --tlsverify ps\n"
    )


CERTS = Command(
    "system certs",
    "system certs [OPTIONS]",
    "Make the certificates for a daemon that is reached over TCP",
    _certs,
    (
        ("client", "", "string", "Name of the client in its certificate", "client"),
        ("days", "", "int", "Days that the certificates are valid", 825),
        ("dir", "", "string", "Directory for the certificates", DIRECTORY),
        ("force", "f", "bool", "Replace the certificates that are there; the authority is kept"),
        ("host", "", "list", "Name or address under which the daemon is reached (repeatable; default: this machine's)"),
    ),
    most=0,
    examples=("tare system certs --host build.example.org --host 192.0.2.7",),
)
