"""What a download goes on with, where it stops, whom it follows: nothing is mixed, all has an end."""

import ssl
import subprocess
from email.utils import formatdate

import pytest

from tests.pull.conftest import BODY, SHA
from tests.support import http_server as s
from triplet.errors import KitError
from triplet.pull import download as module
from triplet.pull.answer import sendable


def just_now():
    """Headers of a file that was changed as recently as it is sent: a date that identifies nothing."""
    return {"Last_Modified": formatdate(usegmt=True)}


SPANS = {
    "superscript": "bytes \xb2-\xb9/\xb3",
    "superscript length": "bytes 150000-299999/\xb3",
    "no unit": "150000-299999/300000",
    "another unit": "lines 150000-299999/300000",
    "negative": "bytes -150000-299999/300000",
    "backwards": "bytes 150000-149999/300000",
    "beyond the end": "bytes 150000-300000/300000",
    "digits without end": "bytes 150000-299999/" + "9" * 5000,
    "another length": "bytes 150000-299999/300001",
    "a shorter part": "bytes 150000-150001/300000",
    "from the beginning": "bytes 0-299999/300000",
    "nothing": "",
}
UNSURE = {
    "the tag is left out": ({"tag": '"a"', "Last_Modified": s.OLD}, {"Last_Modified": s.OLD}),
    "weak tag": ({"tag": 'W/"a"'}, {"tag": 'W/"a"'}),
    "weak tag and a date": ({"tag": 'W/"a"', "Last_Modified": s.OLD}, {"Last_Modified": s.OLD}),
    "empty tag": ({"tag": '""'}, {"tag": '""'}),
    "tag without quotes": ({"tag": "a"}, {"tag": "a"}),
    "date of just now": (just_now, just_now),
    "date that is none": ({"Last_Modified": "yesterday"}, {"Last_Modified": "yesterday"}),
    "date without a zone": ({"Last_Modified": "Sat, 01 Nov 2025 10:00:00"},) * 2,
    "another date": ({"Last_Modified": s.OLD}, {"Last_Modified": s.OLD.replace("10:", "11:")}),
    "no date": ({"Last_Modified": s.OLD}, {}),
    "another tag": ({"tag": '"a"'}, {"tag": '"b"'}),
}


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("checksum", [SHA, None], ids=["sum", "no sum"])
def test_an_odd_range_is_not_gone_on_with(get, server, span, checksum):
    assert get(s.half(tag='"a"'), s.rest(tag='"a"', Content_Range=span), checksum=checksum) == BODY
    assert [("Range" in headers) for _, headers in server.asked] == [False, True, False]


@pytest.mark.parametrize(("first", "second"), UNSURE.values(), ids=UNSURE)
def test_without_a_checksum_only_a_strong_validator_counts(get, server, first, second):
    first, second = (headers() if callable(headers) else headers for headers in (first, second))
    assert get(s.half(**first), s.rest(**second), checksum=None) == BODY
    assert "Range" not in server.asked[-1][1]


@pytest.mark.parametrize("headers", [{"tag": '"a"'}, {"Last_Modified": s.OLD}], ids=["tag", "date"])
def test_without_a_checksum_a_strong_validator_is_enough(get, server, headers):
    assert get(s.half(**headers), s.rest(**headers), checksum=None) == BODY
    (_, first), (_, second) = server.asked
    assert second["If-Range"] in headers.values()
    assert "Range" not in first


@pytest.mark.parametrize("headers", [{"Content_Length": "\xb2"}, {"Content_Length": "-5"}])
def test_an_odd_length_is_no_traceback(get, headers, capfd):
    def odd(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", headers["Content_Length"])
        handler.end_headers()
        handler.cut()

    assert get(odd) == BODY
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_status_that_is_no_number_is_no_traceback(get, capfd):
    def odd(handler, body):
        handler.wfile.write(b"HTTP/1.1 \xb200 OK\r\nContent-Length: 5\r\n\r\nhello")
        handler.cut()

    assert get(odd) == BODY
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("status", [201, 202, 203, 205, 226, 300])
def test_another_status_is_no_file(get, status):
    with pytest.raises(KitError, match=f"answers {status}"):
        get(lambda handler, _: handler.answer(status, b"hello", tag='"a"'), checksum=None)


@pytest.mark.parametrize("encoding", ["gzip", "BR", "deflate, gzip"])
def test_an_encoded_file_needs_a_checksum(get, encoding):
    def encoded(handler, body):
        handler.answer(200, body, Content_Encoding=encoding)

    with pytest.raises(KitError, match=r"sends it encoded .*, and no checksum is known"):
        get(encoded, checksum=None)
    assert get(encoded) == BODY


@pytest.mark.parametrize("size", [len(BODY), None], ids=["length known", "length unknown"])
def test_a_body_without_end_does_not_fill_the_disk(get, server, monkeypatch, tmp_path, size):
    monkeypatch.setattr(module, "STRIDE", 1 << 20)
    usage = module.shutil._ntuple_diskusage(1 << 40, 0, module.RESERVE - 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(KitError, match="sent more than the 300000 bytes" if size else "of the disk free"):
        get(s.endless, size=size)
    left = sum(path.stat().st_size for path in (tmp_path / "to").iterdir())
    assert left < 2 << 20
    assert server.hung_up.wait(20)
    assert get() == BODY


def test_the_rest_without_end_is_cut_off_too(get, server):
    assert get(s.drops(0.5), s.endless) == BODY
    assert server.hung_up.wait(20)


def test_a_page_without_end_is_cut_off(get, server):
    def page(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        s.write_endlessly(handler)

    with pytest.raises(KitError, match="a web page instead of the file, of more than a megabyte"):
        get(page)
    assert server.hung_up.wait(20)


def test_a_trickle_is_no_progress(get, server):
    with pytest.raises(KitError, match=r"\(5 tries\)"):
        get(*[s.trickles(10)] * 99)
    assert len(server.asked) <= 6
    assert get(*[s.trickles(12_000)] * 99) == BODY


@pytest.fixture
def secure(server, tmp_path, monkeypatch):
    """The same server under https, whose certificate the client trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1"
    command = ["openssl", *kind.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with s.serving() as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        yield running


@pytest.mark.parametrize("through", [False, True], ids=["at once", "after http and https"])
def test_https_is_never_left_for_http(get, server, secure, through):
    """Though it would be the right file."""
    address = secure.url("file").replace("http:", "https:")
    secure.files["/file"] = BODY
    secure.faults["/file"] = [lambda handler, _: handler.answer(302, Location=server.url("mirror"))]
    to_https = [lambda handler, _: handler.answer(302, Location=address)]
    with pytest.raises(KitError, match="redirects from https to http"):
        get(*to_https) if through else download_from(address, get)
    assert "/mirror" not in [path for path, _ in server.asked]
    assert get(*to_https) == BODY


def download_from(address, get):
    """With another URL that is not there."""
    get(s.says(404), mirrors=[address])


def test_a_damaged_note_of_a_validator_is_never_sent():
    assert sendable('"a-1"')
    assert sendable("Sat, 01 Nov 2025 10:00:00 GMT")
    assert [sendable(text) for text in (None, "", '"\xb2"', '"a\0"', '"a"\r\nHost: b')] == [False] * 5
