"""What a request of an older API version means, and what such a client expects to see (pure).

A field that a version does not have is ignored, as it was by the daemons of that time; a default that changed is the one that the
client's version documents. Everything behind the faces knows only the newest version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tare.errors import InvalidArgument
from tare.linux.cgroup.detect import detect

if TYPE_CHECKING:
    from tare.api.docker.versions import ApiVersion
    from tare.wire.container import CreateRequest, Mount, UpdateRequest


def create_request(body: CreateRequest, version: ApiVersion) -> None:
    """Bring the body of ``POST /containers/create`` to the newest version's meaning."""
    host = body.host_config
    if version < (1, 25):
        host.auto_remove = False  # these clients remove the container themselves
    if version < (1, 40) and not host.ipc_mode:
        host.ipc_mode = "shareable"
    if version < (1, 41) and not host.cgroupns_mode and detect().mode != "v2":
        host.cgroupns_mode = "host"
    if version < (1, 42):
        host.console_size = [0, 0]
    if version < (1, 43):
        host.annotations = None
    if version < (1, 44) and body.healthcheck is not None:
        body.healthcheck.start_interval = 0
    for mount in host.mounts or ():
        _mount(mount, version)


def _mount(mount: Mount, version: ApiVersion) -> None:
    if (bind := mount.bind_options) is not None:
        if version < (1, 40):
            bind.non_recursive = False
        if version < (1, 42):
            bind.create_mountpoint = False
        if version < (1, 44):
            if bind.read_only_force_recursive:
                raise InvalidArgument("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
            bind.read_only_non_recursive = False
    if (volume := mount.volume_options) is not None and version < (1, 45):
        volume.subpath = ""
    if (tmpfs := mount.tmpfs_options) is not None and version < (1, 46):
        tmpfs.options = None


def update_request(body: UpdateRequest, version: ApiVersion) -> None:
    """Bring the body of ``POST /containers/{id}/update`` to the newest version's meaning."""
    if version < (1, 40):
        body.pids_limit = None


def inspect_view(view: dict[str, Any], version: ApiVersion) -> dict[str, Any]:
    """The answer of ``GET /containers/{id}/json`` as a client of ``version`` knows it."""
    if version < (1, 45):  # since then DNSNames has the short id, and Aliases only what was asked for
        short = view["Id"][:12]
        for name, endpoint in view["NetworkSettings"]["Networks"].items():
            if name not in ("bridge", "host", "none"):
                aliases = [*(endpoint["Aliases"] or ()), short, view["Config"]["Hostname"]]
                endpoint["Aliases"] = list(dict.fromkeys(alias for alias in aliases if alias))
    if version < (1, 44):
        default = view["NetworkSettings"]["Networks"].get(view["HostConfig"]["NetworkMode"])
        if view["Config"].get("MacAddress") == "" and default is not None:
            view["Config"]["MacAddress"] = default["MacAddress"]
    return view


def list_item(view: dict[str, Any], version: ApiVersion) -> dict[str, Any]:
    """An item of ``GET /containers/json`` as a client of ``version`` knows it."""
    if version < (1, 46):
        view["HostConfig"].pop("Annotations", None)
    return view


def security_options(options: list[str], version: ApiVersion) -> list[str]:
    """``SecurityOptions`` of ``GET /info``: before 1.25 the bare names."""
    if version >= (1, 25):
        return options
    return [option.removeprefix("name=").partition(",")[0] for option in options if not option.startswith("name=cgroupns")]
