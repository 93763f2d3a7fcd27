"""The visitors who ask for runs: by visit, whose name the client chooses, and by network address."""

from __future__ import annotations

import ipaddress
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from stable_diffusion.request import RequestError

from .limits import Limits

ACCOUNTS = 8
"""Number of visits from one address whose turns are counted apart; more visits at once share these accounts."""
IPV6_PREFIX = 64
"""Bits of an IPv6 address that count: the rest is the client's choice (RFC 4291, 2.5.1)."""

Account = tuple[str, int]
"""An address, and one of its accounts: whose seconds the engine counts together."""


@dataclass(frozen=True)
class Visitor:
    """Who asks for a run: the name of the visit, and the network address that it comes from."""

    visit: str
    address: str = ""


def visitor_of(request: gr.Request) -> Visitor:
    """Return who sent a request; a program that names no visit is a new one each time."""
    client = request.client
    return Visitor(request.session_hash or uuid.uuid4().hex, network(client.host) if client else "")


def network(address: str) -> str:
    """Return the part of a network address that its user can't choose, without a port; any other text as it is."""
    if address.count(":") == 1 or address.startswith("["):  # some proxies add the port: 192.0.2.1:80, [2001:db8::1]:80
        address = address.rpartition(":")[0].strip("[]") or address
    try:
        host = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(host, ipaddress.IPv4Address):
        return str(host)
    return str(host.ipv4_mapped or ipaddress.IPv6Network((int(host), IPV6_PREFIX), strict=False))


def crowding(addresses: Sequence[str]) -> int:
    """Return the position of the first entry of the address that has most, so that a flood displaces its own."""
    counts = Counter(addresses)
    most = max(counts.values())
    return next(i for i, address in enumerate(addresses) if counts[address] == most)


class Visitors:
    """The visitors who have runs under way, and how many. For one thread."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._runs: Counter[Visitor] = Counter()
        self._accounts: dict[Visitor, int] = {}

    def enter(self, visitor: Visitor) -> Account:
        """Count a run that begins and return its account; `RequestError` if visit or address have too many."""
        most = self._limits.max_visitor_runs
        if self._runs[visitor] >= most:
            raise RequestError(f"{most} of your runs are under way already: wait for one to end, or stop it")
        most, address = self._limits.max_address_runs, visitor.address
        if sum(runs for other, runs in self._runs.items() if other.address == address) >= most:
            raise RequestError(f"{most} runs from your network address are under way already: wait for one to end")
        if visitor not in self._accounts:
            taken = Counter(account for other, account in self._accounts.items() if other.address == address)
            self._accounts[visitor] = min(range(ACCOUNTS), key=lambda account: taken[account])
        self._runs[visitor] += 1
        return address, self._accounts[visitor]

    def leave(self, visitor: Visitor) -> None:
        """Note that a run of the visitor has ended."""
        self._runs[visitor] -= 1
        if not self._runs[visitor]:
            del self._runs[visitor], self._accounts[visitor]
