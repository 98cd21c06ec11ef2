"""Put on a server's path by the tests: whatever tries to reach beyond this machine is noted in a file, and refused.

Python imports a `sitecustomize` it finds at start; children of the server inherit the path and so this.
"""

import os
import sys

_LOCAL = ("127.", "::1", "localhost", "0.0.0.0", "::")


def _audit(event: str, args: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = args[0] if event == "socket.getaddrinfo" else args[1]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(address, str) and event != "socket.getaddrinfo":
            return  # a Unix socket
        if host is not None and not str(host).startswith(_LOCAL):
            with open(os.environ["NO_NETWORK_LOG"], "a", encoding="utf-8") as log:
                log.write(f"{event} {address}\n")
            raise OSError(f"the test blocks the network: {event} {address}")


if os.environ.get("NO_NETWORK_LOG"):
    sys.addaudithook(_audit)
