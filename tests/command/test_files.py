"""Files whole or not at all: a disk that is really full, limits, torn and damaged files, files in the way."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.files import (
    Damaged,
    allocate,
    create_array,
    open_array,
    read_json,
    reading,
    wait_for,
    write_atomic,
    write_json,
    writing,
)

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits and mounts of Linux"
)


def program(code, before=()):
    "The output of another Python process; one that a signal kills fails here."
    done = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


def test_an_array_has_its_space(tmp_path):
    create_array(tmp_path / "a.npy", (100, 64, 64, 3))
    stat = (tmp_path / "a.npy").stat()
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.zeros((100, 64, 64, 3), np.uint8)) and [
        p.name for p in tmp_path.iterdir()
    ] == ["a.npy"]
    if hasattr(os, "posix_fallocate"):
        assert stat.st_blocks * 512 >= 100 * 64 * 64 * 3
    np.lib.format.open_memmap(
        tmp_path / "sparse.npy", mode="w+", dtype=np.uint8, shape=(100, 64, 64, 3)
    )
    open_array(
        tmp_path / "sparse.npy", (100, 64, 64, 3)
    )  # as an older version of this package left it
    assert (tmp_path / "sparse.npy").stat().st_blocks == stat.st_blocks


def test_an_array_that_is_there_is_kept_and_another_is_made_anew(tmp_path):
    path = tmp_path / "a.npy"
    open_array(path, (4, 2, 2, 3))
    np.load(path, mmap_mode="r+")[2] = 7
    open_array(path, (4, 2, 2, 3))
    assert np.load(path)[2].min() == 7
    for damage in (
        path.read_bytes()[:-1],
        path.read_bytes()[:50],
        b"",
        b"no array",
        np.lib.format.magic(9, 9) + bytes(200),
    ):
        path.write_bytes(damage)
        open_array(path, (4, 2, 2, 3))
        assert np.array_equal(np.load(path), np.zeros((4, 2, 2, 3), np.uint8)), damage[:20]


@LINUX
def test_a_limit_of_size_is_an_error_and_leaves_nothing(tmp_path):
    said = program(f"""
        import resource
        from pathlib import Path
        from frl_dgt_nb.files import create_array, write_atomic, writing
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
        folder = Path({str(tmp_path)!r})
        for write, content in ((create_array, (100, 64, 64, 3)), (write_atomic, bytes(10**6))):
            try:
                with writing(folder): write(folder / write.__name__, content)
            except ValueError as error: print(error)
    """)
    assert said.count(
        f"the disk is full (File too large) while writing {tmp_path}; make room"
    ) == 2 and not list(tmp_path.iterdir())


@LINUX
def test_a_disk_that_is_really_full(tmp_path):
    mount = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "$@"',
        "sh",
    ]
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no file system may be mounted here")
    fill = f"""
        import numpy as np
        from pathlib import Path
        from frl_dgt_nb.files import open_array, create_array, writing
        folder = Path({str(tmp_path)!r})
        {{}}
        np.load(folder / "a.npy", mmap_mode="r+")[:] = 1
        print("filled")
    """
    sparse = 'np.lib.format.open_memmap(folder / "a.npy", mode="w+", dtype=np.uint8, shape=(200, 64, 64, 3))'
    with pytest.raises(AssertionError, match=r"^\(-7"):  # SIGBUS: why all this
        program(fill.format(sparse), mount)
    for way in ("create_array", "open_array"):  # of which the second asks for the free space first
        said = program(
            f"""
            from pathlib import Path
            from frl_dgt_nb.files import {way}, writing
            folder = Path({str(tmp_path)!r})
            try:
                with writing(folder): {way}(folder / "a.npy", (200, 64, 64, 3))
            except ValueError as error: print(error, list(folder.iterdir()))
        """,
            mount,
        )
        assert (
            "disk is full (No space left" if way == "create_array" else "0.0 GB are free"
        ) in said and said.strip().endswith("[]")


def test_a_file_system_that_promises_no_space_is_let_be(tmp_path, monkeypatch):
    answers = iter([errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC])
    monkeypatch.setattr(
        os,
        "posix_fallocate",
        lambda *args: (_ for _ in ()).throw(OSError(next(answers), "said")),
        raising=False,
    )
    (tmp_path / "a").write_bytes(b"1")
    allocate(tmp_path / "a")
    allocate(tmp_path / "a")
    with pytest.raises(OSError, match="said.*a'"):
        allocate(tmp_path / "a")
    monkeypatch.delattr(os, "posix_fallocate")
    allocate(tmp_path / "a")  # as on macOS


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a.json", b"old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        write_atomic(tmp_path / "a.json", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"old")]


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"size": 256, "name": "m\u00fcller", "list": [1, 2.5, None, True], "inner": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "code, words",
    [
        (errno.ENOSPC, "the disk is full .* while writing .*out; make room"),
        (getattr(errno, "EDQUOT", errno.ENOSPC), "the disk is full"),
        (errno.EFBIG, "the disk is full"),
        (errno.EROFS, "out can't be written .*; choose a folder of your own"),
        (errno.EACCES, "can't be written"),
        (errno.ENOTDIR, "a file is in its way"),
    ],
)
def test_what_a_user_can_mend_has_a_way_out(tmp_path, code, words):
    with pytest.raises(ValueError, match=words):
        with writing(tmp_path / "out"):
            raise OSError(code, os.strerror(code))


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (OSError(errno.EIO, "bad disk"), ValueError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            with writing(tmp_path):
                raise error
        assert caught.value is error


@pytest.mark.parametrize("inner", ["", "deeper/still"])
def test_a_file_where_a_folder_is_wanted(tmp_path, inner):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="a file is in its way; choose another"):
        with writing(tmp_path / "file" / inner):
            pass
    assert (tmp_path / "file").read_text() == "mine"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.integers(), st.text(max_size=5), st.lists(st.booleans(), max_size=3)),
        max_size=4,
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_no_beginning_of_a_json_object_passes(value, part):
    import tempfile
    from pathlib import Path

    whole = json.dumps(value).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_bytes(whole)
        assert read_json(path) == value
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(Damaged, match="a.json is damaged .*; remove it"):
            read_json(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b"\xff\xfe", b"{}{}", b"\0" * 50])
def test_json_of_another_kind(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Damaged, match="a.json is damaged"):
        read_json(tmp_path / "a.json")


def test_what_reading_lets_through(tmp_path):
    with pytest.raises(Damaged, match=r"x is damaged \(KeyError: 'size'\); buy another"):
        with reading("x", "buy another"):
            {}["size"]
    with pytest.raises(PermissionError):
        with reading("x", ""):
            raise PermissionError(errno.EACCES, "Permission denied", "x")
    with pytest.raises(Damaged, match="^inner is damaged .*; a$"):
        with reading("outer", "b"), reading("inner", "a"):
            raise EOFError
    with pytest.raises(KeyboardInterrupt):
        with reading("x", ""):
            raise KeyboardInterrupt


def test_a_lock_is_held_and_released(tmp_path):
    from filelock import FileLock, Timeout

    with wait_for(tmp_path / ".lock"):
        with pytest.raises(Timeout):
            FileLock(tmp_path / ".lock").acquire(timeout=0)
    FileLock(tmp_path / ".lock").acquire(timeout=0).lock.release()
