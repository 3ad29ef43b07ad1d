"""Which of a container's networks gives its default route, per family, when it is in several. Pure.

As dockerd chooses: the highest gateway priority first, then networks that lead somewhere, then the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tare.networks.model import Connection


def gateways(connections: Iterable[Connection]) -> Mapping[str, tuple[str, ...]]:
    """The default gateways of each link by its endpoint's id, at most one gateway per family in all."""
    ordered = sorted(connections, key=lambda c: (-c.gw_priority, c.network_name))
    chosen: dict[str, tuple[str, ...]] = {}
    for field in ("gateway", "gateway6"):
        best = next((c for c in ordered if getattr(c, field) and not c.internal), None)
        if best is not None:
            chosen[best.endpoint_id] = (*chosen.get(best.endpoint_id, ()), getattr(best, field))
    return chosen
