"""Standard tools on what only the native front end passes on, in a real mount of a real volume."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.volume_mount import VolumeMount

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]


@pytest.fixture(scope="module", params=["colocated", "process"])
def volume(request: pytest.FixtureRequest) -> Iterator[VolumeMount]:
    """One mount for all tests: each works in a place of its own."""
    with tempfile.TemporaryDirectory(prefix="atoll-mount-") as place:
        system = VolumeMount(request.param, place, "native")
        try:
            yield system
        finally:
            system.end()


def test_fallocate_allocates_punches_and_zeroes(volume: VolumeMount) -> None:
    volume.shell(
        """
        mkdir fallocate; cd fallocate
        fallocate -l 1M f; test $(stat -c %s:%b f) = 1048576:2048
        fallocate -n -o 2M -l 64K f; test $(stat -c %s:%b f) = 1048576:2176
        head -c 65536 /dev/urandom > g; cp g before
        fallocate -p -o 4096 -l 8192 g; test $(stat -c %s:%b g) = 65536:112
        head -c 8192 /dev/zero | cmp -n 8192 -i 0:4096 - g; cmp -i 12288 g before
        fallocate -z -o 16000 -l 1000 g; head -c 1000 /dev/zero | cmp -n 1000 -i 0:16000 - g
        cmp -i 17000 g before; cmp -n 4096 g before
        for how in -c -i; do
            if fallocate $how -o 4096 -l 4096 g 2> said; then exit 1; fi
            grep -q 'Operation not supported\\|unsupported' said
        done
        head -c 1M /dev/zero > zeros; fallocate -d zeros; test $(stat -c %s:%b zeros) = 1048576:0
        """
    )


def test_holes_are_found_kept_and_made_by_cp(volume: VolumeMount) -> None:
    volume.shell(
        """
        mkdir holes; cd holes
        truncate -s 40M sparse; echo data | dd of=sparse bs=1 seek=20M conv=notrunc status=none
        cp --sparse=always sparse always; cp --sparse=auto sparse auto; cp --sparse=never sparse no
        for copy in always auto no; do cmp sparse $copy; done
        test $(stat -c %b sparse) = 8; test $(stat -c %b always) = 8
        test $(stat -c %b auto) -lt 300; test $(stat -c %b no) = 81920
        """
    )
    with (volume.path / "holes/sparse").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 20 << 20
        assert os.lseek(file.fileno(), 20 << 20, os.SEEK_HOLE) == (20 << 20) + 4096


def test_clones_are_refused_and_copies_made_instead(volume: VolumeMount) -> None:
    volume.shell(
        """
        mkdir clones; cd clones
        head -c 9000000 /dev/urandom > f
        cp --reflink=auto f auto; cmp f auto
        if cp --reflink=always f always 2> said; then exit 1; fi
        grep -q 'Operation not supported' said
        """
    )


def test_ranges_are_copied_without_the_reader(volume: VolumeMount) -> None:
    path = volume.path / "ranges"
    path.mkdir()
    octets = os.urandom(10 << 20)
    (path / "f").write_bytes(octets)
    with (path / "f").open("rb") as source, (path / "g").open("w+b") as target:
        done = 0
        while count := os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            done += count
        assert done == len(octets)
        assert os.copy_file_range(source.fileno(), target.fileno(), 7, 3, 12_345) == 7
        assert os.pread(target.fileno(), 7, 12_345) == octets[3:10]
        with pytest.raises(OSError, match="Invalid argument"):
            os.copy_file_range(target.fileno(), target.fileno(), 100, 0, 50)
    expected = octets[:12_345] + octets[3:10] + octets[12_352:]
    assert (path / "g").read_bytes() == expected


def give_name(file: int, path: Path) -> None:
    """Link an open file to a path, by the way that open(2) describes."""
    opened = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(str(file), path, src_dir_fd=opened, follow_symlinks=True)
    finally:
        os.close(opened)


def test_nameless_file_gets_its_name_by_linkat(volume: VolumeMount) -> None:
    path = volume.path / "nameless"
    path.mkdir()
    file = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(file, b"first ")
    assert os.fstat(file).st_nlink == 0
    assert os.listdir(path) == []
    give_name(file, path / "named")
    os.write(file, b"second")
    os.close(file)
    assert (path / "named").read_bytes() == b"first second"
    assert (path / "named").stat().st_nlink == 1
    assert (path / "named").stat().st_mode & 0o7777 == 0o640
    exclusive = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with pytest.raises(FileNotFoundError):
        give_name(exclusive, path / "other")
    os.close(exclusive)
    with tempfile.TemporaryFile(dir=path) as usual:
        usual.write(b"x" * 100_000)
    assert os.listdir(path) == ["named"]


def test_inodes_have_clean_flags_which_stay_clean(volume: VolumeMount) -> None:
    said = volume.shell(
        """
        mkdir flags; touch flags/f; lsattr flags/f; lsattr -d flags; chattr -i -a flags/f
        for flag in +i +a +d; do if chattr $flag flags/f 2> said; then exit 1; fi
            grep -q 'Operation not supported' said; done
        rm flags/f
        """
    )
    lines = said.splitlines()
    assert [line.split()[1] for line in lines] == ["flags/f", "flags"]
    assert {frozenset(line.split()[0]) for line in lines} == {frozenset("-")}


def test_unknown_ioctl_is_not_for_files(volume: VolumeMount) -> None:
    (volume.path / "ioctl").write_bytes(b"")
    libc = ctypes.CDLL(None, use_errno=True)
    with (volume.path / "ioctl").open("rb") as file:
        assert not os.isatty(file.fileno())
        assert libc.ioctl(file.fileno(), 0x1234, 0) == -1
        assert ctypes.get_errno() == errno.ENOTTY
        flags = ctypes.create_string_buffer(b"\xff" * 28)
        assert libc.ioctl(file.fileno(), 0x801C581F, flags) == 0  # FS_IOC_FSGETXATTR
        assert flags.raw[:28] == bytes(28)


def test_stat_says_when_a_file_was_born(volume: VolumeMount) -> None:
    volume.shell(
        """
        before=$(date +%s); mkdir birth; cd birth; touch f; touch -d @1000 f
        test $(stat -c %W f) -ge $((before - 1)); test $(stat -c %W f) -le $(date +%s)
        test $(stat -c %Y f) = 1000; mv f g; echo x > g; ln g h
        test $(stat -c %W g) = $(stat -c %W h); test $(stat -c %s:%h h) = 2:2
        test $(stat -c %W .) -ge $((before - 1)); ln -s g s; test $(stat -c %W s) -gt 0
        cd ..; rm -r birth
        """
    )


def test_sync_of_the_file_system_reaches_the_server(volume: VolumeMount) -> None:
    volume.shell("echo x > synced; sync -f synced; sync -d synced; sync synced; rm synced")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes other users' ids")
def test_supplementary_group_lets_a_user_make_files(volume: VolumeMount) -> None:
    path = volume.path / "ours"
    path.mkdir()
    os.chown(path, 0, 4321)
    path.chmod(0o2770)
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    member = f"{setpriv} --reuid 1234 --regid 1234 --groups 4321,7 sh -c"
    other = f"{setpriv} --reuid 1234 --regid 1234 --groups 7 sh -c"
    volume.shell(
        f"""
        chmod 755 .
        {member} 'touch ours/f; mkdir ours/d; ln -s f ours/s; mkfifo ours/p'
        test $(stat -c %u:%g ours/f) = 1234:4321
        if {other} 'touch ours/g' 2>/dev/null; then exit 1; fi
        """
    )
