"""An HTTP server of one thread that answers with odd headers."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.fuzz import mutate

STATUS = (
    "200 OK",
    "206 Partial Content",
    "206 Partial Content",
    "416 No",
    "503 Later",
    "302 Found",
    "²²² x",
    "0",
    "",
)
NUMBERS = ("3000", "2000", "0", "-1", "²", "9" * 5000, "3000, 3000", "0x10", "1e3", "")
HEADERS = {
    "Content-Length": NUMBERS,
    "Content-Range": (
        "bytes 1000-2999/3000",
        "bytes ²-³/³",
        "bytes */3000",
        "bytes 1000-2999/*",
        "x",
        "bytes 0-9/²",
    ),
    "ETag": ('"tag"', 'W/"tag"', "tag", '"' + "t" * 9000 + '"', ""),
    "Last-Modified": ("Wed, 21 Oct 2015 07:28:00 GMT", "never", ""),
    "Retry-After": ("0", "-1", "²", "9" * 300, "soon"),
    "Location": ("/other", "file:///etc/passwd", "http://[", "//", "/" + "x" * 9000),
    "Content-Type": ("application/octet-stream", "text/html", "²"),
    "Transfer-Encoding": ("chunked",),
    "Content-Encoding": ("gzip",),
}


@contextmanager
def served(random: Random) -> Iterator[str]:
    """Serve on loopback; yields a URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, random), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/f"


def _serve(listener: socket.socket, random: Random) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                connection.recv(1 << 16)
                connection.sendall(_answer(random))


def _answer(random: Random) -> bytes:
    if random.random() < 0.4:  # honest, but for its body
        head = b'HTTP/1.1 200 OK\r\nContent-Length: 3000\r\nETag: "tag"\r\nConnection: close\r\n\r\n'
        return head + b"y" * random.choice([3000, 3000, 3000, 2000])
    chosen = random.sample(sorted(HEADERS), random.randint(0, 5))
    lines = [
        f"HTTP/1.1 {random.choice(STATUS)}",
        *(f"{name}: {random.choice(HEADERS[name])}" for name in chosen),
    ]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
    if random.random() < 0.2:
        head = mutate.data(random, head)
    return head + random.choice([b"y" * 3000, b"y" * 2000, b"", b"<html>no</html>", b"y" * 5000])
