"""Files at addresses."""

import io

import pytest

from gptlab.data.sources.storage import Address


class Web:
    """A file system that tells what a server tells of a file."""

    def __init__(self, content, **told):
        self.content, self.told = content, told

    def info(self, path):
        return {"name": path, "size": len(self.content), "type": "file", **self.told}

    def ukey(self, path):
        return "always the same, as fsspec has it for http"

    def open(self, path, mode):
        return io.BytesIO(self.content)


def key(content, **told):
    return Address("https://host/a.txt", Web(content, **told), "https://host/a.txt", len(content)).key()


@pytest.mark.parametrize("name", ["ETag", "Last-Modified", "LastModified", "md5Hash", "mtime"])
def test_what_a_server_tells_of_a_change_is_noticed(name):
    assert key(b"AAAA", **{name: "1"}) == key(b"AAAA", **{name: "1"}) != key(b"AAAA", **{name: "2"})


def test_where_it_tells_nothing_the_content_counts():
    assert key(b"AAAA") == key(b"AAAA", mimetype="text/plain") != key(b"BBBB")
