"""Free ports of the loopback interface."""

import socket
from contextlib import ExitStack


def free_port() -> int:
    """A free port of the loopback interface."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Different free ports."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
