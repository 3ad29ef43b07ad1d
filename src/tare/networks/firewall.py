"""The packet rules of one bridge: address translation, published ports, isolation; in an nftables table of its own.

Published ports are elements of two *maps*, so publishing the thousandth port costs what the first did, and no process serves a port:

    ports_any   protocol . port            -> container address . port      (published on 0.0.0.0)
    ports_at    address . protocol . port  -> container address . port      (published on one address)

The way of a packet, and why each rule is there:

    raw        from the bridge to 127.0.0.0/8: dropped. The bridge has route_localnet (so that the host reaches published ports on
               127.0.0.1), which would otherwise open the host's loopback services to containers. Frames between containers, which
               pass here only where br_netfilter shows them to IP rules, are not tracked: nothing translates them, and tracking
               costs time.
    dstnat     to an address of this machine and in a map: redirected. In prerouting for packets from elsewhere and from containers
               (hairpin), in output for the host's own.
    forward    to the bridge: answers, containers among themselves, and what was redirected; nothing else. A neighbour that routes
               straight to a container's address reaches published ports only. From the bridge outwards: everything.
    srcnat     containers to the outside: from the host's address. To the bridge: only what could not be answered otherwise, namely
               from the host's loopback and from containers of the same subnet (hairpin). Everybody else's address is preserved.

IPv6 has no route_localnet: an answer for ::1 that comes over a bridge is dropped, whatever translated it. So a question from ::1 to a
published port is given other addresses before connection tracking sees it (``loopback_out``: a link-local one that every bridge with IPv6
has, and the bridge's own), and its answer gets ::1 back after everything else (``loopback_in``). Only the host itself may send from that
link-local address (``raw``), and only answers get ::1 back: nobody else opens a way to the host's loopback.

``accept`` in a base chain of ours ends only that chain: every drop rule that the host has of its own, at whatever priority, still holds.
The reverse is the trouble: where another table drops by policy (a host with dockerd or ufw), our accept does not help. ``open_forward``
deals with the usual one.

All of it is replaced as one transaction (``apply``): established connections do not notice. The table's name contains the bridge's,
so several daemons and tests do not collide.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tare.linux.nft import Nftables
from tare.networks.ports import ANY, ANY6, LOOPBACK6, PublishedPort

COMMENT = "tare"
LINK_LOCAL6 = "fe80::7461:7265"
"""The link-local address of every bridge with IPv6: stands for ::1 on the way to a container."""
_ELEMENTS_PER_LINE = 64

_TABLE = """\
table {ip} {table} {{
  map ports_any {{ type inet_proto . inet_service : {type} . inet_service; {any} }}
  map ports_at {{ type {type} . inet_proto . inet_service : {type} . inet_service; {at} }}
  chain published {{
    meta l4proto {{ tcp, udp, sctp }} dnat {ip} to {ip} daddr . meta l4proto . th dport map @ports_at
    meta l4proto {{ tcp, udp, sctp }} dnat {ip} to meta l4proto . th dport map @ports_any
  }}
  chain raw_prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{bridge}" {ip} daddr {local} drop
    {guarded}
    iifname "{bridge}" {ip} saddr {subnet} {ip} daddr {subnet} fib daddr type != local notrack
  }}
  chain nat_prerouting {{
    type nat hook prerouting priority -100; policy accept;
    fib daddr type local jump published
  }}
  chain nat_output {{
    type nat hook output priority -100; policy accept;
    {looped}
    fib daddr type local jump published
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    {internal}
    oifname != "{bridge}" accept
    ct state established,related accept
    ct status dnat accept
    {separate}
    iifname "{bridge}" accept
    drop
  }}
  chain nat_postrouting {{
    type nat hook postrouting priority 100; policy accept;
    oifname "{bridge}" {ip} saddr {host} masquerade
    oifname "{bridge}" ct status dnat {ip} saddr {subnet} masquerade
    {masquerade}
  }}{loopback}
}}
"""

_GUARDED = f'iifname != "lo" ip6 saddr {LINK_LOCAL6} drop'
_LOOPED = f"ip6 saddr {LINK_LOCAL6} meta l4proto {{ tcp, udp, sctp }} dnat ip6 to meta l4proto . th dport map @ports_loop"
_LOOPBACK = """
  map ports_loop {{ type inet_proto . inet_service : ipv6_addr . inet_service; {loop} }}
  set loop {{ type inet_proto . inet_service; {keys} }}
  chain loopback_out {{
    type filter hook output priority -310; policy accept;
    ip6 saddr ::1 ip6 daddr ::1 meta l4proto . th dport @loop ip6 saddr set {link} ip6 daddr set {gateway}
  }}
  chain loopback_in {{
    type filter hook input priority 110; policy accept;
    iifname "{bridge}" ip6 daddr {link} ct direction reply ct status dnat ip6 saddr set ::1 ip6 daddr set ::1
  }}"""


@dataclass(frozen=True)
class Rules:
    """The switches of one network."""

    internal: bool = False
    masquerade: bool = True
    icc: bool = True
    """Whether containers of the network may talk to each other. Frames between two ports of a bridge do not pass these rules (unless
    br_netfilter is there): what keeps them apart is that the ports are *isolated* (``AttachedNetwork.link_mode``)."""
    source: str = ""
    """The address that containers have outside; empty for that of the way out."""
    source6: str = ""
    gateway6: str = ""
    """The bridge's IPv6 address."""


RULES = Rules()


@dataclass(frozen=True)
class Redirect:
    """One published port and where it leads."""

    port: PublishedPort
    address: str

    @property
    def map(self) -> str:
        if self.port.host_ip == LOOPBACK6:
            return "ports_loop"
        return "ports_any" if self.port.host_ip in (ANY, ANY6) else "ports_at"

    @property
    def ipv6(self) -> bool:
        return ":" in self.address

    @property
    def loops(self) -> bool:
        """Whether it is to be reached on ::1."""
        return self.port.host_ip in (ANY6, LOOPBACK6)

    @property
    def port_key(self) -> str:
        return f"{self.port.protocol} . {self.port.host_port}"

    @property
    def key(self) -> str:
        return f"{self.port.host_ip} . {self.port_key}" if self.map == "ports_at" else self.port_key

    @property
    def element(self) -> str:
        return f"{self.key} : {self.address} . {self.port.container_port}"


def ruleset(table: str, bridge: str, subnets: Sequence[str], redirects: Iterable[Redirect], rules: Rules = RULES) -> str:
    """The tables of all families as one transaction that replaces older ones."""
    wanted = list(redirects)
    text = "".join(f"add table {family} {table}\ndelete table {family} {table}\n" for family in ("ip", "ip6"))
    for ipv6 in (False, True):
        ranges = [subnet for subnet in subnets if (":" in subnet) == ipv6]
        if ranges:
            text += _family(table, bridge, ipv6, ranges, [redirect for redirect in wanted if redirect.ipv6 == ipv6], rules)
    return text


def _family(table: str, bridge: str, ipv6: bool, ranges: Sequence[str], redirects: Sequence[Redirect], rules: Rules) -> str:
    """The table of one family."""
    elements: dict[str, list[str]] = {"ports_any": [], "ports_at": [], "ports_loop": []}
    for redirect in redirects:
        elements[redirect.map].append(redirect.element)
    family = "ip6" if ipv6 else "ip"
    own = f"{{ {', '.join(ranges)} }}"
    source = rules.source6 if ipv6 else rules.source
    outgoing = f'oifname != "{bridge}" {family} saddr {own} ' + (f"snat {family} to {source}" if source else "masquerade")
    closed = f'iifname "{bridge}" oifname != "{bridge}" drop\n    oifname "{bridge}" iifname != "{bridge}" drop'
    loopback = _LOOPBACK.format(
        bridge=bridge,
        link=LINK_LOCAL6,
        gateway=rules.gateway6,
        loop=_initial(elements["ports_loop"]),
        keys=_initial([redirect.port_key for redirect in redirects if redirect.loops]),
    )
    return _TABLE.format(
        ip=family,
        type="ipv6_addr" if ipv6 else "ipv4_addr",
        local="::1" if ipv6 else "127.0.0.0/8",
        host=LINK_LOCAL6 if ipv6 else "127.0.0.0/8",  # a container would answer a link-local address with one, and so another
        table=table,
        bridge=bridge,
        subnet=own,
        any=_initial(elements["ports_any"]),
        at=_initial(elements["ports_at"]),
        internal=closed if rules.internal else "",
        separate="" if rules.icc else f'iifname "{bridge}" oifname "{bridge}" drop',
        masquerade=outgoing if rules.masquerade and not rules.internal else "",
        guarded=_GUARDED if ipv6 and rules.gateway6 else "",
        looped=_LOOPED if ipv6 and rules.gateway6 else "",
        loopback=loopback if ipv6 and rules.gateway6 else "",
    )


def _initial(elements: list[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }}" if elements else ""


def _change(verb: str, table: str, redirects: Iterable[Redirect], with_target: bool) -> str:
    """Commands that add or delete the elements of these redirects."""
    groups: dict[str, list[str]] = {}
    for redirect in redirects:
        name = f"{'ip6' if redirect.ipv6 else 'ip'} {table} {redirect.map}"
        groups.setdefault(name, []).append(redirect.element if with_target else redirect.key)
        if redirect.loops:
            groups.setdefault(f"ip6 {table} loop", []).append(redirect.port_key)
    lines = []
    for name, items in groups.items():
        for start in range(0, len(items), _ELEMENTS_PER_LINE):
            chunk = ", ".join(items[start : start + _ELEMENTS_PER_LINE])
            lines.append(f"{verb} element {name} {{ {chunk} }}\n")
    return "".join(lines)


def table_name(bridge: str) -> str:
    """The name of a bridge's tables: its own, and no other's."""
    plain = f"tare_{bridge.replace('-', '_').replace('.', '_')}"
    return f"{plain}_{hashlib.sha256(bridge.encode()).hexdigest()[:8]}" if "_" in bridge or "." in bridge else plain


class Firewall:
    """The rules of one bridge in the kernel."""

    def __init__(self, nft: Nftables, bridge: str, subnets: Sequence[str], rules: Rules = RULES) -> None:
        self._nft = nft
        self._bridge = bridge
        self._subnets = tuple(subnets)
        self._rules = rules
        self.table = table_name(bridge)

    def apply(self, redirects: Iterable[Redirect]) -> None:
        """Put the tables and all their redirects in place, whatever was there of them before."""
        self._nft.run(ruleset(self.table, self._bridge, self._subnets, redirects, self._rules))

    def publish(self, redirects: list[Redirect]) -> bool:
        """Add redirects. False when the table is gone (somebody flushed the rules) and must be applied anew."""
        return not redirects or self._try(_change("add", self.table, redirects, True))

    def unpublish(self, redirects: list[Redirect]) -> bool:
        """Delete redirects. False when one of them was not there."""
        return not redirects or self._try(_change("delete", self.table, redirects, False))

    def _try(self, script: str) -> bool:
        try:
            self._nft.run(script)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    @property
    def _families(self) -> tuple[str, ...]:
        return tuple(sorted({"ip6" if ":" in subnet else "ip" for subnet in self._subnets}))

    def intact(self) -> bool:
        """Whether the tables are there, with their rules."""
        return all(self._nft_objects(f"list chain {family} {self.table} forward", "rule") for family in self._families)

    def remove(self) -> None:
        """Take the tables and what ``open_forward`` added away. Idempotent."""
        self._nft.run("".join(f"add table {family} {self.table}\ndelete table {family} {self.table}\n" for family in ("ip", "ip6")))
        for family in self._families:
            for rule in self._forward_rules(family):
                self._nft.run(f"delete rule {family} filter FORWARD handle {rule['handle']}\n")

    def open_forward(self) -> str:
        """Deal with an iptables (nf_tables) FORWARD chain that drops by policy, as dockerd leaves it; returns a warning or "".

        Accept rules for our bridge are put at the *end* of that chain: they replace its policy for this bridge only, after every
        rule of the host, of ufw or of DOCKER-USER has had its say. They are as plain as iptables can still display (our own table
        has dropped already what may not reach the bridge). Other tables that drop by policy cannot be opened from outside
        and are named in the warning.
        """
        warning = ""
        for chain in self._nft_objects("list chains", "chain"):
            family = chain["family"]
            if chain.get("hook") != "forward" or chain.get("policy") != "drop" or family not in (*self._families, "inet"):
                continue
            if family == "inet" or (chain["table"], chain["name"]) != ("filter", "FORWARD"):
                where = f"{family} {chain['table']} {chain['name']}"
                warning = f"the nftables chain {where} drops forwarded packets by policy: allow the interface {self._bridge} there"
            elif not self._forward_rules(family):
                bridge = self._bridge
                self._nft.run(
                    f'add rule {family} filter FORWARD oifname "{bridge}" counter accept comment "{COMMENT}"\n'
                    f'add rule {family} filter FORWARD iifname "{bridge}" counter accept comment "{COMMENT}"\n'
                )
        return warning

    def _forward_rules(self, family: str) -> list[dict[str, Any]]:
        """Our rules in iptables' FORWARD chain."""
        rules = self._nft_objects(f"list chain {family} filter FORWARD", "rule")
        return [rule for rule in rules if rule.get("comment") == COMMENT and _names(rule["expr"], self._bridge)]

    def _nft_objects(self, command: str, kind: str) -> list[dict[str, Any]]:
        try:
            return [entry[kind] for entry in self._nft.query(command) if kind in entry]
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise


def _names(expression: list[dict[str, Any]], bridge: str) -> bool:
    return any(part.get("match", {}).get("right") == bridge for part in expression)
