"""A container's settings over its image's, by dockerd's rules (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tare.wire.container import Config, Healthcheck


def as_list(value: list[str] | str | None) -> list[str] | None:
    """Go's ``strslice``: a JSON string stands for a list of one."""
    return [value] if isinstance(value, str) else value


def merge(config: Config, image: Config | None) -> Config:
    """The effective config: the container's own values win, maps and environments are united."""
    merged = msgspec.structs.replace(config, cmd=as_list(config.cmd), entrypoint=as_list(config.entrypoint))
    if image is not None:
        _merge_image(merged, image)
    if merged.entrypoint == [""]:
        merged.entrypoint = None
    return merged


def _merge_image(merged: Config, image: Config) -> None:
    merged.user = merged.user or image.user
    if image.exposed_ports:
        merged.exposed_ports = {**image.exposed_ports, **(merged.exposed_ports or {})}
    merged.env = merge_env(image.env or [], merged.env or [])
    merged.labels = {**(image.labels or {}), **(merged.labels or {})}
    if not merged.entrypoint:
        if not merged.cmd:
            merged.cmd = as_list(image.cmd)
        if merged.entrypoint is None:
            merged.entrypoint = as_list(image.entrypoint)
    merged.healthcheck = merge_healthcheck(merged.healthcheck, image.healthcheck)
    merged.working_dir = merged.working_dir or image.working_dir
    if image.volumes:
        merged.volumes = {**image.volumes, **(merged.volumes or {})}
    merged.stop_signal = merged.stop_signal or image.stop_signal
    if merged.stop_timeout is None:
        merged.stop_timeout = image.stop_timeout
    merged.shell = merged.shell or image.shell
    merged.on_build = merged.on_build or image.on_build


def merge_env(base: Sequence[str], own: Sequence[str]) -> list[str]:
    """The own variables, then those of the image whose names are not set yet; a name without ``=`` hides the image's value."""
    names = {entry.partition("=")[0] for entry in own}
    return [*own, *(entry for entry in base if entry.partition("=")[0] not in names)]


def merge_healthcheck(own: Healthcheck | None, image: Healthcheck | None) -> Healthcheck | None:
    """Fields that the container leaves at zero come from the image."""
    if own is None or image is None:
        return own or image
    return msgspec.structs.replace(
        own,
        test=own.test or image.test,
        interval=own.interval or image.interval,
        timeout=own.timeout or image.timeout,
        start_period=own.start_period or image.start_period,
        start_interval=own.start_interval or image.start_interval,
        retries=own.retries or image.retries,
    )
