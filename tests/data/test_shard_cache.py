"""The cache of shards: bounded, one download on a machine, nothing half written under a name."""

import errno
import multiprocessing
import os
import signal
import threading
import time

import pytest

from gptlab import UserError
from gptlab.data.shard_cache import Cached, ShardCache


def file(number, size=100, calls=None, seconds=0.0):
    def fetch(opened):
        if calls is not None:
            calls.append(number)
        for _ in range(10):
            time.sleep(seconds / 10)
            opened.write(bytes([number]) * (size // 10))

    return Cached(name=f"{number:064x}.bin", size_bytes=size, fetch=fetch)


def there(cache):
    return sorted(int(path.name[:64], 16) for path in cache.folder.glob("*.bin"))


def test_the_least_recently_used_goes_first_and_what_is_open_stays(tmp_path):
    cache, calls = ShardCache(tmp_path, 300), []
    for number in (1, 2, 3):
        with cache.open(file(number, calls=calls)) as opened:
            assert opened.read() == bytes([number]) * 100
        time.sleep(0.01)
    cache.open(file(1, calls=calls)).close()
    cache.open(file(4, calls=calls)).close()
    assert there(cache) == [1, 3, 4] and calls == [1, 2, 3, 4]
    with cache.open(file(1)), cache.open(file(3)), cache.open(file(4)):
        assert cache.open(file(5), needed=False) is None and there(cache) == [1, 3, 4]
        cache.open(file(5)).close()  # needed now
        assert there(cache) == [1, 3, 4, 5]
    cache.open(file(6)).close()
    assert there(cache) == [4, 5, 6]
    assert not list(cache.folder.glob("*.partial"))


def test_several_threads_and_processes_fetch_a_file_once(tmp_path):
    log = tmp_path / "log"

    def work():
        cache = ShardCache(tmp_path / "cache", 1000)

        def fetch(opened):
            with open(log, "a") as lines:
                lines.write("fetched\n")
            time.sleep(0.2)
            opened.write(b"x" * 100)

        with cache.open(Cached(name=f"{7:064x}.bin", size_bytes=100, fetch=fetch)) as opened:
            assert opened.read() == b"x" * 100

    (tmp_path / "cache").mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for each in [*processes, *threads]:
        each.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "fetched\n"


def test_a_killed_process_leaves_nothing_under_a_name(tmp_path):
    def work():
        def fetch(opened):
            opened.write(b"half")
            opened.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        ShardCache(tmp_path, 250).open(Cached(name=f"{1:064x}.bin", size_bytes=100, fetch=fetch))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = ShardCache(tmp_path, 250)
    assert there(cache) == [] and len(list(cache.folder.iterdir())) == 1
    for number in (2, 3):  # its room is free again
        cache.open(file(number)).close()
    assert there(cache) == [2, 3] and len(list(cache.folder.iterdir())) == 2
    with cache.open(file(1)) as opened:
        assert opened.read() == b"\1" * 100


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError])
def test_an_error_leaves_nothing(tmp_path, stop):
    def fetch(opened):
        opened.write(b"half")
        raise stop("stop")

    cache = ShardCache(tmp_path, 250)
    with pytest.raises(stop):
        cache.open(Cached(name=f"{1:064x}.bin", size_bytes=100, fetch=fetch))
    assert not list(cache.folder.iterdir())


def test_a_file_of_another_size_is_fetched_again(tmp_path):
    cache = ShardCache(tmp_path, 250)
    cache.open(file(1)).close()
    (path,) = cache.folder.iterdir()
    path.write_bytes(b"cut")
    with cache.open(file(1)) as opened:
        assert opened.read() == b"\1" * 100


def test_a_full_disk_says_so_after_making_room(tmp_path):
    cache, left = ShardCache(tmp_path, 10_000), [2]
    cache.open(file(1)).close()

    def fetch(opened):
        opened.write(b"x" * 50)
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        opened.write(b"x" * 50)

    full = Cached(name=f"{2:064x}.bin", size_bytes=100, fetch=fetch)
    assert cache.open(full, needed=False) is None and there(cache) == [1]
    with cache.open(full) as opened:
        assert opened.read() == b"x" * 100
    assert there(cache) == [2]  # the other made room
    left[0] = 2
    with pytest.raises(UserError, match=r"disk of the cache folder .*data\.cache_gib.*data\.cache_dir"):
        cache.open(Cached(name=f"{3:064x}.bin", size_bytes=100, fetch=fetch))
    assert not list(cache.folder.glob("*.partial"))


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be used.*data\.cache_dir"):
        ShardCache(tmp_path, 100).open(file(1))
