"""/proc's tables, as kernels print them."""

from dmcopy.block.mounts import Mount, parse_locks, parse_mountinfo, parse_swaps, unescape

_MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw,discard
40 27 8:17 /sub/dir /mnt/a\040b\134c rw,nosuid shared:5 - ext4 /dev/sdb1 rw
41 27 0:44 /@home /home rw - btrfs /dev/sdc rw,space_cache=v2,subvol=/@home
bad line
"""


def test_mountinfo_with_any_number_of_optional_fields() -> None:
    proc, root, bind, btrfs = parse_mountinfo(_MOUNTINFO)
    assert proc == Mount((0, 21), "/", "/proc", "proc", "proc")
    assert root == Mount((254, 0), "/", "/", "ext4", "/dev/root")
    assert bind == Mount((8, 17), "/sub/dir", "/mnt/a b\\c", "ext4", "/dev/sdb1")
    assert btrfs == Mount((0, 44), "/@home", "/home", "btrfs", "/dev/sdc")


def test_octal_escapes() -> None:
    assert unescape(r"/a\040b\011c\012d\134040") == "/a b\tc\nd\\040"


def test_swaps() -> None:
    text = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t1024\t\t0\t\t100\n"
        "/var/swap\\040file                       file\t\t1024\t\t0\t\t-2\n"
    )
    assert parse_swaps(text) == ["/dev/zram0", "/var/swap file"]
    assert parse_swaps("") == []


def test_locks_that_only_wait_are_left_out() -> None:
    text = (
        "1: FLOCK  ADVISORY  WRITE 1234 fd:0a:99 0 EOF\n"
        "1: -> FLOCK  ADVISORY  WRITE 1235 fd:0a:99 0 EOF\n"
        "2: OFDLCK ADVISORY  READ -1 00:17:7 100 101\n"
    )
    first, second = parse_locks(text)
    assert (first.kind, first.pid, first.devno, first.inode) == ("FLOCK", 1234, (0xFD, 0x0A), 99)
    assert (second.kind, second.pid) == ("OFDLCK", -1)
