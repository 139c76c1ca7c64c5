"""A real HTTP server on loopback that behaves, and the ways in which servers misbehave."""

import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OLD = "Sat, 01 Nov 2025 10:00:00 GMT"
HTML = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>no</body></html>"
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, dict(self.headers)))
        name = self.path.partition("?")[0]
        faults = server.faults.get(name)
        if name in server.pages:
            server.pages[name](self)
        elif name not in server.files:
            self.send_error(404)
        elif faults:
            faults.pop(0)(self, server.files[name])
        else:
            honest(self, server.files[name])

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, body=b"", *, length=None, tag=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if tag:
            self.send_header("ETag", tag)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.body(body)

    def body(self, body):
        """In small pieces, slowly where the test wants to interrupt; nothing for HEAD."""
        if self.command == "HEAD":
            return
        step = self.server.piece
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if self.server.pause:
                time.sleep(self.server.pause)

    def cut(self):
        self.wfile.flush()
        self.close_connection = True

    def start(self):
        """Where the client wants to go on from."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.pages, self.asked = {}, {}, {}, []
        self.piece, self.pause = 1 << 16, 0.0
        self.hung_up = threading.Event()
        """Whether a client ended a transfer."""

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        pass  # clients that go away are what the tests are about


@contextmanager
def serving():
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def etag(body):
    return f'"{hashlib.md5(body).hexdigest()}"'


def honest(handler, body):
    start = handler.start()
    if start and handler.headers.get("If-Range") in (None, etag(body)):
        if start >= len(body):
            handler.answer(416, Content_Range=f"bytes */{len(body)}")
            return
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.answer(206, body[start:], tag=etag(body), Content_Range=span)
    else:
        handler.answer(200, body, tag=etag(body))


def drops(share):
    """The connection ends after a share of what it still owes."""

    def fault(handler, body):
        start = handler.start()
        rest = body[start:]
        span = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        part = rest[: int(len(rest) * share)]
        handler.answer(206 if start else 200, part, length=len(rest), tag=etag(body), **span)
        handler.cut()

    return fault


def says(status, **headers):
    def fault(handler, body):
        handler.answer(status, b"sorry", **headers)

    return fault


def longer(handler, body):
    """Promises more than there is."""
    handler.answer(200, body, length=len(body) + 1000, tag=etag(body))
    handler.cut()


def shorter(handler, body):
    """Promises, and sends, less than there is."""
    handler.answer(200, body[:-1000], tag=etag(body))


def no_ranges(handler, body):
    handler.answer(200, body)


def wrong_start(handler, body):
    """Sends other bytes than were asked for."""
    start = max(0, handler.start() - 100)
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    handler.answer(206, body[start:], tag=etag(body), Content_Range=span)


def no_span(handler, body):
    handler.answer(206, body[handler.start() :], tag=etag(body))


def changed(handler, body):
    """Another file by now, and cut; the validator says so."""
    other = body[::-1]
    handler.answer(200, other[: len(other) // 2], length=len(other), tag=etag(other))
    handler.cut()


def ignores_if_range(handler, body):
    """Goes on with another file as if nothing had happened; only the ETag tells."""
    start, other = handler.start(), body[::-1]
    span = f"bytes {start}-{len(other) - 1}/{len(other)}"
    handler.answer(206 if start else 200, other[start:], tag=etag(other), Content_Range=span)


def forgets_tag(handler, body):
    """Goes on with another file, of one length and date, and says no ETag."""
    start, other = handler.start(), body[::-1]
    span = f"bytes {start}-{len(other) - 1}/{len(other)}"
    handler.answer(206, other[start:], Content_Range=span, Last_Modified=OLD)


def half(**headers):
    """Brings half of the file under these headers, then breaks off."""

    def fault(handler, body):
        handler.answer(200, body[: len(body) // 2], length=len(body), **headers)
        handler.cut()

    return fault


def rest(**headers):
    """Brings what was asked for as a part of the right file, under these headers."""

    def fault(handler, body):
        start = handler.start()
        span = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}", **headers}
        handler.answer(206, body[start:], **span)

    return fault


def endless(handler, body):
    """Never stops, and does not say how long it is; gives up when nobody listens."""
    handler.send_response(206 if handler.start() else 200)
    handler.send_header("Transfer-Encoding", "chunked")
    if handler.start():
        handler.send_header("ETag", etag(body))
        handler.send_header("Content-Range", f"bytes {handler.start()}-{len(body) - 1}/{len(body)}")
    handler.end_headers()
    write_endlessly(handler)


def write_endlessly(handler):
    """Chunks until nobody listens."""
    try:
        for _ in range(2000):
            handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
    except OSError:
        handler.server.hung_up.set()
    handler.close_connection = True


def trickles(count):
    """Brings so many bytes at each request, then breaks off."""

    def fault(handler, body):
        start = handler.start()
        span = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        part = body[start : start + count]
        handler.answer(206 if start else 200, part, length=len(body) - start, tag=etag(body), **span)
        handler.cut()

    return fault


def corrupt(handler, body):
    handler.answer(200, bytes([body[0] ^ 1]) + body[1:], tag=etag(body))


def empty(handler, body):
    handler.answer(200)


def html(handler, body):
    handler.answer(200, HTML, Content_Type="text/html; charset=utf-8")


def html_as_file(handler, body):
    handler.answer(200, HTML, Content_Type="application/octet-stream")


def stalls(handler, body):
    handler.answer(200, body[:100], length=len(body), tag=etag(body))
    time.sleep(4)
    handler.cut()


def silent(handler, body):
    """Hangs up without an answer."""
    handler.cut()


def garbage(handler, body):
    handler.wfile.write(b"\x00\xff what?\r\n\r\n")
    handler.cut()


def redirects(name):
    def fault(handler, body):
        handler.answer(302, Location=f"/{name}")

    return fault


def chunked(handler, body):
    """Does not say how long it is."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))


def unending(handler, body):
    """Neither a length nor an end that could be told from a broken connection."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.cut()
