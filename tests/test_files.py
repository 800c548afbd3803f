import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptlab.files import locked, replace_folder, replacing, sha256_of, stat_key, sync_folder, write_text_atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_text_atomic(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_bytes() == b"old\r\n"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_bytes() == b"old\r\n"
    sync_folder(tmp_path)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", ["file", "folder"])
def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path, target):
    for name in ("old", "new"):
        (tmp_path / name).write_text(name) if target == "file" else (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("old")
    stale = tmp_path / f".link.{os.getpid()}.tmp"  # of a killed process with the same number
    stale.symlink_to("old")
    with replacing(link) as temporary:
        temporary.symlink_to("new")
    assert link.readlink().name == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "new", "old"]


def test_a_folder_is_replaced_with_all_that_it_holds(tmp_path):
    path, new = tmp_path / "folder", tmp_path / ".folder.tmp"
    for content in ("one", "two"):
        new.mkdir()
        (new / content).touch()
        replace_folder(new, path)
        assert [file.name for file in path.iterdir()] == [content]
    assert list(tmp_path.iterdir()) == [path]


def test_checksum(tmp_path):
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_replaced_file_of_the_same_size_and_mtime_has_another_key(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    before = stat_key(path)
    assert stat_key(path) == before
    other = tmp_path / "other"
    other.write_text("two")
    os.utime(other, ns=(0, before[1]))
    os.replace(other, path)
    after = stat_key(path)
    assert after[:2] == before[:2] and after != before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_keeps_other_processes_out_until_it_is_freed(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    code = f"from gptlab.files import locked\nwith locked({str(path)!r}, wait=False): pass"

    def other() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    with locked(path):
        assert "BlockingIOError" in other().stderr
        with ThreadPoolExecutor(1) as pool, pytest.raises(BlockingIOError):
            pool.submit(lambda: locked(path, wait=False).__enter__()).result()
    assert other().returncode == 0


def test_a_killed_process_holds_no_lock(tmp_path):
    path = tmp_path / "lock"
    code = f"import os\nfrom gptlab.files import locked\nwith locked({str(path)!r}): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with locked(path, wait=False):
        pass


def test_the_command_starts_without_what_windows_lacks(tmp_path):
    code = (
        "import os, sys, signal\n"
        "for name in ('SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGKILL'): delattr(signal, name)\n"
        "del os.uname\n"
        "import filelock\n"  # picks what the system has
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "from gptlab.cli.main import main\n"
        "import gptlab.distributed.signals, gptlab.files\n"
        "sys.argv = ['gptlab', 'train', '--cfg', 'job']\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "context_length" in done.stdout, done.stderr
