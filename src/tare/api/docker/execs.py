"""``/containers/{id}/exec`` and ``/exec``: further processes in running containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tare.api.docker.attach import parse_detach_keys, stream_type, upgrade_head
from tare.api.docker.params import json_body, json_response, terminal_size
from tare.containers.execs import ExecSession
from tare.containers.task import Attachment
from tare.errors import StartFailed, TareError
from tare.http.message import Request, Response
from tare.wire.container import ExecCreateRequest, ExecStartRequest

if TYPE_CHECKING:
    from tare.engine import Engine


class ExecHandlers:
    """Handlers of the exec endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._containers = engine.containers
        self._execs = engine.containers.execs

    async def create(self, request: Request) -> Response:
        body = await json_body(request, ExecCreateRequest)
        if body.detach_keys:
            parse_detach_keys(body.detach_keys)
        session = self._execs.create(self._containers.get(request.params["id"]), body)
        return json_response({"Id": session.id}, 201)

    async def start(self, request: Request, version: tuple[int, int]) -> Response | None:
        session = self._execs.get(request.params["id"])
        body = await json_body(request, ExecStartRequest, optional=True)
        self._execs.check_startable(session)
        size = body.console_size or session.request.console_size or [0, 0]
        console_size = (size[0], size[1]) if len(size) == 2 else (0, 0)
        if body.detach:
            await self._execs.start(session, None, console_size)
            return Response(status=200)
        asked = session.request
        tty = body.tty  # as dockerd: how the answer is framed is the starter's wish, whatever terminal the command has
        hijacked = await request.hijack(upgrade_head(request, stream_type(request, tty, version)))
        attachment = Attachment(
            sock=hijacked.sock,
            stdin=asked.attach_stdin,
            stdout=asked.attach_stdout or asked.tty,
            stderr=asked.attach_stderr and not asked.tty,
            multiplexed=not tty,
            prefix=hijacked.rest,
            detach_keys=(parse_detach_keys(asked.detach_keys) if asked.detach_keys else b"\x10\x11") if asked.tty else b"",
        )
        failure = attachment.sock.dup()
        try:
            await self._execs.start(session, attachment, console_size)
        except StartFailed:
            pass  # the keeper has told the client
        except TareError as error:
            # HTTP is over on this connection: the reason goes where the output would have gone.
            failure.setblocking(True)
            failure.settimeout(5)
            try:
                failure.sendall(f"{error}\r\n".encode() if tty else _frame(f"{error}\r\n".encode()))
            except OSError:
                pass
            attachment.sock.close()
        finally:
            failure.close()
        return None

    async def inspect(self, request: Request) -> Response:
        session = self._execs.get(request.params["id"])
        await self._execs.settle(session)
        return json_response(_view(session))

    async def resize(self, request: Request) -> Response:
        rows, columns = terminal_size(request)
        await self._execs.resize(self._execs.get(request.params["id"]), rows, columns)
        return Response(status=200)


def _frame(text: bytes) -> bytes:
    return b"\x01\x00\x00\x00" + len(text).to_bytes(4, "big") + text


def _view(session: ExecSession) -> dict[str, object]:
    request = session.request
    command = request.cmd or []
    return {
        "ID": session.id,
        "Running": session.running,
        "ExitCode": session.exit_code,
        "ProcessConfig": {
            "tty": request.tty,
            "entrypoint": command[0] if command else "",
            "arguments": command[1:],
            "privileged": request.privileged,
            **({"user": request.user} if request.user else {}),
        },
        "OpenStdin": request.attach_stdin,
        "OpenStderr": request.attach_stderr,
        "OpenStdout": request.attach_stdout,
        "CanRemove": False,
        "ContainerID": session.container.id,
        "DetachKeys": request.detach_keys.encode().hex() if not request.detach_keys else request.detach_keys,
        "Pid": session.pid,
    }
