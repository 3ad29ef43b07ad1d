"""What the daemon's configuration gives to containers that do not say otherwise; written into their settings when they are made, so
that ``inspect`` shows it and a later daemon with other defaults leaves them as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tare.wire.container import Ulimit

if TYPE_CHECKING:
    from tare.config import EngineConfig
    from tare.wire.container import HostConfig


def fill(host: HostConfig, engine: EngineConfig) -> None:
    """Complete ``host``. A privileged container is left its system calls, as dockerd does."""
    host.ipc_mode = host.ipc_mode or engine.default_ipc_mode
    host.cgroupns_mode = host.cgroupns_mode or engine.default_cgroupns_mode
    host.shm_size = host.shm_size or engine.default_shm_size
    host.log_config.type = host.log_config.type or engine.log_driver  # clients (docker-py) decide by it whether there are logs to read
    own = {item.name for item in host.ulimits or ()}
    if more := [Ulimit(name=name, soft=soft, hard=hard) for name, soft, hard in engine.default_ulimits if name not in own]:
        host.ulimits = [*(host.ulimits or ()), *more]
    if engine.no_new_privileges and not _says(host, "no-new-privileges"):
        host.security_opt = [*(host.security_opt or ()), "no-new-privileges"]
    if engine.seccomp_profile and not host.privileged and not _says(host, "seccomp"):
        host.security_opt = [*(host.security_opt or ()), f"seccomp={engine.seccomp_profile}"]


def _says(host: HostConfig, key: str) -> bool:
    return any(option.replace(":", "=").partition("=")[0] == key for option in host.security_opt or ())
