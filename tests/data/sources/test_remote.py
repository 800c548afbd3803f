"""Files at addresses: over a server with and without ranges, one that fails now and then, and a slow one."""

import sys

import pytest
from file_server import serving

from gptlab import UserError
from gptlab.data.sources import remote
from gptlab.data.sources.remote import Place, RemoteFile, UnreadableError, filesystem

CONTENT = bytes(range(256)) * 300  # 76,800


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote, "WAITS_SECONDS", (0.0,) * 4)
    monkeypatch.setattr(remote, "FIRST_WAITS_SECONDS", (0.0,) * 2)


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(tmp_path, request):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with serving(tmp_path, ranges=request.param) as server:
        yield server


def blocks(file, size):
    found = []
    while block := file.read(size):
        assert len(block) <= size
        found.append(block)
    return b"".join(found)


def test_a_file_is_asked_for_once_and_read_in_blocks(server):
    with Place(server.url).open("a.bin", len(CONTENT)) as file:
        assert blocks(file, 10_000) == CONTENT
    assert server.gets == [("/a.bin", None)]


def test_reading_goes_on_where_a_connection_broke(server):
    server.broken, server.slow_seconds, server.piece_bytes = (
        3,
        0.01,
        8_000,
    )  # so that something arrives before it breaks
    with Place(server.url).open("a.bin", len(CONTENT)) as file:
        assert blocks(file, 7_000) == CONTENT
    assert len(server.gets) == 4 and server.gets[0][1] is None
    assert any((asked or "bytes=0-") != "bytes=0-" for _, asked in server.gets[1:])


def test_a_busy_server_is_asked_again_and_progress_counts(server):
    server.busy, server.slow_seconds, server.piece_bytes = 4, 0.001, 1000
    with Place(server.url).open("a.bin", len(CONTENT)) as file:
        assert blocks(file, 50_000) == CONTENT
    server.busy = 5
    with Place(server.url).open("a.bin") as file, pytest.raises(UnreadableError, match=r"5 attempts.*503"):
        file.read(10)


def test_what_does_not_exist_is_not_asked_for_again(server):
    place = Place(server.url)
    assert place.read("b.bin") is None
    assert len(server.gets) == 1
    with place.open("b.bin") as file, pytest.raises(UnreadableError, match="does not exist"):
        file.read(10)
    assert place.read("a.bin", 5_000) == CONTENT[:5_000]


def test_a_file_that_is_shorter_than_it_was_is_noticed(server):
    with Place(server.url).open("a.bin", len(CONTENT) + 1) as file:
        assert file.read(10) == CONTENT[:10]
        with pytest.raises(UnreadableError, match="ended after 76,800 of 76,801"):
            blocks(file, 50_000)


def test_places_in_a_file_are_read_over_ranges(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with serving(tmp_path) as server:
        system, path = filesystem(f"{server.url}/a.bin")
        file = RemoteFile(system, path, seekable=True)
        file.seek(-100, 2)
        assert file.read(1000) == CONTENT[-100:]
        server.broken = 1
        file.seek(500)
        assert file.read(10) == CONTENT[500:510] and file.tell() == 510


@pytest.mark.parametrize("url", ["memory://place/of files", "file://{}/of files", "dir://of files::file://{}"])
def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path, url, monkeypatch):
    place = Place(url.format(tmp_path))
    assert place.sizes_bytes() == {} and place.read("a.bin") is None
    (tmp_path / "here").write_bytes(CONTENT)
    real, calls = place.system.put_file, []

    def failing(source, target, **options):
        calls.append(target)
        real(source, target, **options)
        assert "a.bin" not in place.sizes_bytes()
        if len(calls) < 3:
            raise ConnectionError("gone")

    monkeypatch.setattr(place.system, "put_file", failing)
    try:
        place.upload(tmp_path / "here", "a.bin")
        assert len(calls) == 3 and place.read("a.bin") == CONTENT
        assert place.sizes_bytes() == {"a.bin": len(CONTENT)}
        calls.clear()
        monkeypatch.setattr(place.system, "put_file", lambda *_: (_ for _ in ()).throw(PermissionError("not yours")))
        with pytest.raises(UserError, match=r"b\.bin cannot be written.*not yours.*same command"):
            place.upload(tmp_path / "here", "b.bin")
    finally:
        if "memory" in url:
            place.system.rm("/place", recursive=True)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://bucket/x: .*pip install s3fs"):
        Place("s3://bucket/x")
    with pytest.raises(UserError, match=r"no protocol s4.*such as s3"):
        Place("s4://bucket/x")


def test_secrets_are_not_shown(server):
    place = Place(server.url.replace("http://", "http://me:hunter2@") + "/x")
    server.busy = 100
    with pytest.raises(UserError, match=r"\*\*\*@") as error:
        place.read("a.bin")
    assert "hunter2" not in str(error.value) and "503" in str(error.value)
