"""Run a program that reaches this machine alone: `python -m tests.e2e.alone app.py --port 7860`.

Every attempt to reach another one, or to ask for its address, fails and takes a line of the log. The program ends when
its parent does: tests that are killed leave no server behind.
"""

from __future__ import annotations

import ipaddress
import os
import runpy
import sys
import threading
import time

DENIED = "network denied"


def deny(event: str, arguments: tuple) -> None:
    """An audit hook (PEP 578)."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a path of this machine
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host and not here(host.decode() if isinstance(host, bytes) else host):
        print(f"{DENIED}: {event} to {host}", file=sys.stderr, flush=True)
        raise OSError(f"{DENIED}: {host}")


def here(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def end_with(parent: int) -> None:
    """End this process once another one has become its parent."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.addaudithook(deny)
    runpy.run_path(sys.argv[0], run_name="__main__")
