"""The address that a server listens on."""

import errno
import ipaddress
import socket

from foldray.errors import UserError


def is_loopback(host: str) -> bool:
    """Whether a host names this machine for itself alone: localhost, or a loopback address (in brackets or not)."""
    plain = host.strip("[]").lower()
    try:
        return plain == "localhost" or ipaddress.ip_address(plain).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address, so that no other server can take it while this one starts.

    Args:
        host: A name or an address.
        port: The port; 0 takes a free one.

    Raises:
        UserError: The host is not one of this machine, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(
            "--host", f"{host} can't be found ({_reason(error)}); use a name or address of this machine"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address[0], port, *address[2:]))
        listener.listen()  # two sockets may be bound to one port until the first listens
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
            raise UserError("--host", f"{host} is no address of this machine; use one that is") from None
        raise UserError("--port", f"{host}:{port} can't be listened on ({_reason(error)}); choose another") from None
    return listener


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
