"""The step that sets up the container's end of a link. Apart from the others, since only containers of the engine have links."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from tare.linux.netlink import Route
from tare.runtime.context import Context, SetupFailed, reason
from tare.runtime.plan import step


@step
class ConfigureLink(NamedTuple):
    """Our end of a veth pair: addresses, up, default routes."""

    name: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    made_as: str = ""
    """What it is called so far, where it could not be made under its name (older kernels look for a link of that name on the host)."""

    def describe(self) -> str:
        return f"configure {self.name}: {' '.join(self.addresses)}" + (f" via {' '.join(self.gateways)}" if self.gateways else "")

    def run(self, context: Context) -> None:
        context.wait("network")
        try:
            with Route() as route:
                link = route.link(self.made_as or self.name)
                if link is None:
                    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), self.name)
                if self.made_as:
                    route.set_link(link.index, name=self.name)
                for address in self.addresses:
                    route.add_address(link.index, address)
                route.set_link(link.index, up=True)
                for gateway in self.gateways:
                    route.add_route(None, gateway, link.index)
        except OSError as error:
            raise SetupFailed(f"failed to configure network interface {self.name}: {reason(error)}") from None
