"""The transport against a server that misbehaves: the right file or none, and nothing that came is lost."""

import signal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pull.conftest import BODY, SHA
from tests.support import http_server as s
from triplet.errors import Interrupted, KitError
from triplet.pull import download as module
from triplet.pull.download import DownloadSpec, download, plain, speed
from triplet.signals import Stop

MENDED = {
    "dropped": [s.drops(0.5)],
    "dropped again and again": [s.drops(0.3)] * 12,  # more often than TRIES: progress was made
    "dropped at the first byte": [s.drops(0)],
    "promises too much": [s.longer],
    "429": [s.says(429, Retry_After="0")],
    "503": [s.says(503), s.says(503)],
    "500, 502, 504": [s.says(500), s.says(502), s.says(504)],
    "redirect": [s.redirects("mirror")],
    "no ranges": [s.drops(0.5), s.no_ranges],
    "wrong start": [s.drops(0.5), s.wrong_start],
    "206 without a span": [s.drops(0.5), s.no_span],
    "416": [s.drops(0.5), s.says(416)],
    "changed and back": [s.drops(0.5), s.changed],
    "ignores If-Range": [s.drops(0.5), s.ignores_if_range],
    "stalls": [s.stalls],
    "hangs up": [s.silent],
    "garbage": [s.garbage],
    "chunked": [s.chunked],
    "ends early without a length": [s.drops(0.2), s.silent, s.drops(0.5)],
}


@pytest.mark.parametrize("faults", MENDED.values(), ids=MENDED)
def test_what_passes_is_waited_for(get, faults):
    assert get(*faults) == BODY


LASTING = {
    "404": ([s.says(404)], "answers 404"),
    "403": ([s.says(403)], "answers 403"),
    "web page": ([s.html], "a web page instead of the file .*Quota exceeded"),
    "web page as a file": ([s.html_as_file], "a web page instead of the file"),
    "redirect loop": ([s.redirects("file")] * 20, "redirect"),
    "corrupt": ([s.corrupt], "gave a file whose sha256 is"),
    "empty": ([s.empty], "gave an empty file"),
    "too short": ([s.shorter], "gave a file whose sha256 is"),
    "503 for ever": ([s.says(503)] * 9, r"answers 503 \(5 tries\)"),
    "asks to wait hours": ([s.says(429, Retry_After="9000")], "asks to wait 9000 s"),
    "another file each time": ([s.drops(0.5), s.changed] * 9, "tries"),
}


@pytest.mark.parametrize(("faults", "message"), LASTING.values(), ids=LASTING)
def test_what_does_not_pass_is_said_and_the_mirror_helps(get, server, faults, message):
    with pytest.raises(KitError, match=message):
        get(*faults)
    assert get(*faults, mirrors=[server.url("mirror")]) == BODY


def test_nobody_there(get, server, tmp_path):
    with pytest.raises(KitError, match=r"127\.0\.0\.1:9"):
        download(DownloadSpec("file", ["http://127.0.0.1:9/file"], SHA), tmp_path / "file", Stop())
    assert get(mirrors=["http://127.0.0.1:9/file"]) == BODY


def test_only_the_rest_is_fetched_again(get, server):
    assert get(s.drops(0.5)) == BODY
    (_, first), (_, second) = server.asked
    assert "Range" not in first
    assert second["Range"] == f"bytes={len(BODY) // 2}-"
    assert second["If-Range"] == s.etag(BODY)


def test_another_mirror_goes_on_where_the_first_broke_off(get, server):
    assert get(s.drops(0.5), *[s.silent] * 9, mirrors=[server.url("mirror")]) == BODY
    path, headers = server.asked[-1]
    assert path == "/mirror"
    assert headers["Range"] == f"bytes={len(BODY) // 2}-"


def test_without_a_checksum_only_the_same_file_is_gone_on_from(get, server):
    assert get(s.drops(0.5), s.changed, checksum=None) == BODY
    assert [headers.get("If-Range") for _, headers in server.asked] == [
        None,
        s.etag(BODY),
        s.etag(BODY[::-1]),
    ]


@pytest.mark.parametrize("fault", [s.ignores_if_range, s.wrong_start, s.no_span, s.forgets_tag])
def test_without_a_checksum_no_other_bytes_are_mixed_in(get, fault):
    """The headers alone tell."""
    assert get(s.drops(0.5), fault, checksum=None) == BODY


def test_without_checksum_and_validator_it_starts_anew(get, server):
    def nameless(handler, body):
        handler.answer(200, body[:1000], length=len(body))
        handler.cut()

    assert get(nameless, checksum=None) == BODY
    assert "Range" not in server.asked[1][1]


def test_without_checksum_and_length_nothing_is_believed(get):
    with pytest.raises(KitError, match="does not say how long"):
        get(s.chunked, checksum=None)
    with pytest.raises(KitError, match="does not say how long"):
        get(s.unending, checksum=None)


def test_a_wrong_length_is_refused_before_the_bytes_come(get, server):
    server.piece = 1000
    with pytest.raises(KitError, match=f"offers {len(BODY)} bytes, expected 5"):
        get(size=5)


def test_a_corrupt_part_is_fetched_anew_once(get, server, tmp_path):
    """A part that the disk or a meddler spoiled costs one more download, not the file."""
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "file.part").write_bytes(bytes(1000))
    begun = module._Begun(url=server.url("file"), validator=s.etag(BODY), bytes=len(BODY))
    (tmp_path / "to" / "file.part.json").write_text(begun.model_dump_json())
    assert get() == BODY
    assert [headers.get("Range") for _, headers in server.asked] == ["bytes=1000-", None]


@pytest.mark.parametrize("note", [None, "{", '{"url": 3}'])
def test_a_part_of_nothing_known_is_fetched_anew(get, server, tmp_path, note):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "file.part").write_bytes(BODY[:1000])
    if note:
        (tmp_path / "to" / "file.part.json").write_text(note)
    assert get(checksum=None) == BODY
    assert "Range" not in server.asked[0][1]


def test_a_full_disk_is_said_before(get, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: module.shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(KitError, match=r"has 0\.0 MB free, file needs 0\.3 MB"):
        get()


def test_a_stop_keeps_what_came(server, tmp_path):
    server.files["/file"], server.piece, server.pause = BODY, 10_000, 0.02
    stop, path = Stop(), tmp_path / "file"

    class After(Stop):
        def __bool__(self):
            return (tmp_path / "file.part").exists() and (tmp_path / "file.part").stat().st_size > 50_000

    with pytest.raises(Interrupted, match="are kept"):
        download(DownloadSpec("file", [server.url("file")], SHA), path, After())
    came = (tmp_path / "file.part").stat().st_size
    assert 50_000 < came < len(BODY)
    server.pause = 0
    download(DownloadSpec("file", [server.url("file")], SHA), path, stop)
    assert path.read_bytes() == BODY
    assert server.asked[-1][1]["Range"] == f"bytes={came}-"


def test_a_stop_ends_the_waiting_between_tries(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 60)
    server.files["/file"], server.faults["/file"] = BODY, [s.says(503)] * 9
    stop = Stop()

    def ask(*_):
        stop.signal = signal.SIGTERM

    monkeypatch.setattr(module.time, "sleep", ask)
    with pytest.raises(Interrupted):
        download(DownloadSpec("file", [server.url("file")], SHA), tmp_path / "file", stop)


def test_a_token_stays_with_its_host(get, server):
    """Redirected to another host, here the same one under another name, libcurl keeps it to itself."""
    elsewhere = server.url("mirror").replace("127.0.0.1", "localhost")
    assert get(lambda handler, _: handler.answer(302, Location=elsewhere), token="secret-token") == BODY
    (_, first), (path, second) = server.asked
    assert first["Authorization"] == "Bearer secret-token"
    assert path == "/mirror"
    assert "Authorization" not in second


def test_a_token_is_sent_to_no_form(get, server):
    page = b"<html><form action='/other'><input type='hidden' name='confirm' value='t'></form></html>"
    with pytest.raises(KitError, match="sent a web page instead of the file"):
        get(lambda handler, _: handler.answer(200, page, Content_Type="text/html"), token="secret-token")
    assert len(server.asked) == 1


def test_a_token_is_for_the_first_url_alone(get, server):
    assert get(s.says(403), mirrors=[server.url("mirror")], token="secret-token") == BODY
    assert "Authorization" not in server.asked[-1][1]


def test_secrets_in_a_url_are_not_shown():
    assert plain("https://user:secret@host/a?b=c") == "https://host/a?b=c"


def test_other_protocols_are_refused(get, server, tmp_path):
    (tmp_path / "local").write_bytes(BODY)
    outside = f"file://{tmp_path}/local"
    with pytest.raises(KitError, match="could not be fetched"):
        get(*[lambda handler, _: handler.answer(302, Location=outside)] * 9)
    with pytest.raises(KitError, match="could not be fetched"):
        download(DownloadSpec("file", [outside], SHA), tmp_path / "file", Stop())


def test_the_speed_is_measured(server):
    server.files["/file"], server.piece, server.pause = BODY, 10_000, 0.01
    assert 1e4 < speed(server.url("file"), None, 1) < 1e6 * 1.1
    server.faults["/file"] = [s.html]
    with pytest.raises(KitError, match="gives a web page"):
        speed(server.url("file"), None, 1)
    with pytest.raises(KitError, match="gives nothing"):
        speed(server.url("none"), None, 1)


ANY = [
    s.drops(0),
    s.drops(0.2),
    s.drops(0.9),
    s.longer,
    s.shorter,
    s.says(429),
    s.says(503),
    s.says(416),
    s.says(404),
    s.no_ranges,
    s.wrong_start,
    s.no_span,
    s.changed,
    s.ignores_if_range,
    s.corrupt,
    s.empty,
    s.html,
    s.html_as_file,
    s.silent,
    s.garbage,
    s.chunked,
    s.redirects("mirror"),
]


@given(faults=st.lists(st.sampled_from(ANY), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_it_is_the_right_file_or_none(server, tmp_path_factory, faults):
    server.files |= {"/file": BODY, "/mirror": BODY}
    server.faults["/file"] = list(faults)
    path = tmp_path_factory.mktemp("any") / "file"
    wanted = DownloadSpec("file", [server.url("file")], SHA)
    for _ in range(3):  # run again after a failure: what came must do no harm
        try:
            download(wanted, path, Stop())
        except KitError:
            assert not path.exists()
    server.faults["/file"] = []
    download(wanted, path, Stop())
    assert path.read_bytes() == BODY
