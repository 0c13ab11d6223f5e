"""Every table line in the kernel's documentation and in its echo reads, checks and writes back."""

import pytest

from dmcopy.table import (
    CoreLog,
    Delay,
    Delayed,
    DiskLog,
    Leg,
    Linear,
    Mirror,
    Raw,
    Snapshot,
    SnapshotMerge,
    Table,
    parse_concise,
    read_concise,
)

# Documentation/admin-guide/device-mapper of 6.12, with the shell's variables filled in.
DOCUMENTED = [
    "0 41943040 cache /dev/mapper/metadata /dev/mapper/ssd /dev/mapper/origin 512 1 writeback "
    "default 0",
    "0 41943040 cache /dev/mapper/metadata /dev/mapper/ssd /dev/mapper/origin 1024 1 writeback "
    "mq 4 sequential_threshold 1024 random_threshold 8",
    "0 204800 delay /dev/sdb 0 500",
    "0 204800 delay /dev/sdb 2048 0 /dev/sdc 4096 400",
    "0 204800 delay /dev/sdb 0 50 /dev/sdc 0 100 /dev/sdb 0 333",
    "0 409600 delay /dev/sda1 0 500",
    "0 1048576000 clone /dev/md /dev/dest /dev/source 8 1 no_hydration",
    "0 1048576000 linear /dev/dest 0",
    "0 204800 crypt aes-cbc-essiv:sha256 babebabebabebabebabebabebabebabe 0 /dev/sdb 0",
    "0 204800 crypt aes-cbc-essiv:sha256 :32:logon:my_prefix:my_key 0 /dev/sdb 0",
    "0 1048576 crypt aes-xts-plain64 "
    "babebabebabebabebabebabebabebabebabebabebabebabebabebabebabebabe 0 /dev/sda 0 1 "
    "allow_discards",
    "0 33552384 dust /dev/vdb1 0 512",
    "0 33552384 dust /dev/vdb1 0 4096",
    "0 204800 ebs /dev/sda 1024 1",
    "0 204800 ebs /dev/sda 128 2 4",
    "0 204800 flakey /dev/sdb 0 1 1 5 corrupt_bio_byte 32 r 1 0",
    "0 204800 flakey /dev/sdb 0 1 1 5 corrupt_bio_byte 224 w 0 32",
    "0 204800 linear /dev/sdb 0\n204800 102400 linear /dev/sdc 0",
    "0 32768 linear /dev/sda1 0\n32768 1024000 linear /dev/sda2 0\n"
    "1056768 204800 linear /dev/sda3 0\n1261568 512000 linear /dev/sda4 0",
    "0 2 linear /dev/loop0 512\n2 2 linear /dev/loop0 512\n4 2 linear /dev/loop0 512\n"
    "6 2 linear /dev/loop0 512",
    "0 204800 log-writes /dev/sdb /dev/sdc",
    "0 10 multipath 0 0 1 1 queue-length 0 2 1 8:0 128 8:16 128",
    "0 10 multipath 0 0 1 1 service-time 0 2 2 8:0 128 1 8:16 128 4",
    "0 10 multipath 0 0 1 1 service-time 0 2 2 8:0 128 2 8:16 128 8",
    "0 1960893648 raid raid4 1 2048 5 - 8:17 - 8:33 - 8:49 - 8:65 - 8:81",
    "0 1960893648 raid raid4 4 2048 sync min_recovery_rate 20 "
    "5 8:17 8:18 8:33 8:34 8:49 8:50 8:65 8:66 8:81 8:82",
    "0 2097152 linear 8:19 384",
    "0 2097152 snapshot 254:11 254:12 P 16",
    "0 2097152 snapshot-origin 254:11",
    "0 2097152 snapshot-merge 254:11 254:12 P 16",
    "0 409600 snapshot-origin 8:2",
    "0 1638400 striped 4 4096 /dev/sda1 0 /dev/sda2 0 /dev/sda3 0 /dev/sda4 0",
    "0 204800 switch 3 128 0 /dev/vg1/switch0 0 /dev/vg1/switch1 0 /dev/vg1/switch2 0",
    "0 20971520 thin-pool /dev/md /dev/data 128 32768",
    "0 2097152 thin /dev/mapper/pool 0",
    "0 2097152 thin /dev/mapper/pool 0 /dev/image",
    "0 512 unstriped 2 256 0 /dev/nvme0n1 0",
    "0 512 unstriped 2 256 1 /dev/nvme0n1 0",
    "0 512 unstriped 4 256 3 /dev/mapper/striped 0",
    "0 2097152 vdo V4 /dev/dm-1 262144 4096 32768 16380",
    "0 8388608 vdo V4 /dev/dm-1 524288 4096 32768 16380",
    "0 10485760 vdo V4 /dev/dm-1 786432 4096 32768 16380 maxDiscard 8",
    "0 2097152 vdo V3 /dev/dm-1 262144 4096 32768 16380 auto ack 1 bio 4 maxDiscard 8",
    "0 2097152 vdo V2 /dev/dm-1 262144 4096 32768 16380 on auto vdo0 deduplication off",
    "0 2097152 vdo V1 /dev/dm-1 262144 4096 disabled 0 32768 16380 on sync vdo0 ack=1,bio=4",
    "0 2097152 vdo /dev/dm-1 4096 disabled 0 32768 16380 on auto vdo0 .",
    "0 10485760 vdo V4 /dev/dm-1 786432 512 65550 5000 hash 1 logical 3 physical 2",
    "0 2097152 verity 1 /dev/sda1 /dev/sda2 4096 4096 262144 1 sha256 "
    "4392712ba01368efdf14b05c76f9e4df0d53664630b5d48632ed17a137f39076 "
    "1234000000000000000000000000000000000000000000000000000000000000",
    "0 1638400 verity 1 8:1 8:2 4096 4096 204800 1 sha256 "
    "fb1a5a0f00deb908d8b53cb270858975e76cf64105d412ce764225d53b8f3cfd "
    "51934789604d1b92399c52e7cb149d1b3a1b74bbbcb103b2a0aaacbed5c08584",
    "0 21474836480 zero",
    "0 21474836480 snapshot /dev/mapper/zero1 /dev/sdb1 p 128",
]
# What `dmsetup table` printed in guests with Debian's 6.1 and 6.12, after single spaces.
ECHOED = [
    "0 16384 mirror core 1 1024 2 7:17 0 7:18 0 1 handle_errors",
    "0 16384 mirror disk 3 7:19 1024 nosync 2 7:17 0 7:18 0 2 handle_errors keep_log",
    "0 16384 flakey 7:0 0 1 1 0",
    "0 16384 flakey 7:0 0 1 1 2 error_reads error_writes",
    "0 16384 snapshot 7:0 7:1 PO 8 2 discard_zeroes_cow discard_passdown_origin",
    "0 16384 snapshot 7:0 7:1 N 8",
    "0 16384 thin-pool 7:0 7:1 128 0 1 skip_block_zeroing",
    "0 16384 thin-pool 7:0 7:1 128 0 0",
    "0 16384 error",
    "0 16384 era 7:0 7:1 64",
    "0 8192 integrity 7:0 0 4 J 6 journal_sectors:88 interleave_sectors:32768 buffer_sectors:128 "
    "journal_watermark:50 commit_time:10000 internal_hash:crc32c",
    "0 8192 writecache s 7:0 7:1 4096 2 high_watermark 60",
    "0 8192 zoned 8:0 8:16",
]


@pytest.mark.parametrize("text", DOCUMENTED + ECHOED)
def test_a_documented_line_is_typed_and_written_back(text: str) -> None:
    table = Table.parse(text)
    assert str(table) == text
    assert not any(isinstance(line.target, Raw) for line in table)
    assert Table.parse(str(table.canonical())) == table.canonical()


def test_values_of_some_lines() -> None:
    def target(text: str) -> object:
        return Table.parse(text).lines[0].target

    assert target("0 8 linear /dev/a 7") == Linear("/dev/a", 7)
    assert target("0 8 delay a 0 5 b 1 6") == Delay(Delayed("a", 0, 5), Delayed("b", 1, 6))
    assert target("0 64 snapshot /dev/a /dev/b P 8") == Snapshot("/dev/a", "/dev/b", "P", 8)
    assert target("0 64 snapshot-merge a b PO 8 0") == SnapshotMerge("a", "b", "PO", 8, ())
    legs = (Leg("a", 0), Leg("b", 4))
    assert target("0 64 mirror core 1 32 2 a 0 b 4") == Mirror(CoreLog(32), legs)
    disk = Mirror(DiskLog("l", 32, "sync"), legs, ("handle_errors",))
    assert target("0 64 mirror disk 3 l 32 sync 2 a 0 b 4 1 handle_errors") == disk


def test_unknown_targets_keep_their_words() -> None:
    table = Table.parse("0 8 tomorrow a 1 b:2")
    assert table.lines[0].target == Raw("tomorrow", ("a", "1", "b:2"))
    assert str(table) == "0 8 tomorrow a 1 b:2"


def test_what_a_newer_kernel_prints_is_kept_raw_but_a_person_is_told() -> None:
    text = "0 8 linear 7:0 0 novelty"
    assert Table.read(text).lines[0].target == Raw("linear", ("7:0", "0", "novelty"))
    with pytest.raises(Exception, match="linear: word 'novelty' is one too many"):
        Table.parse(text)


@pytest.mark.parametrize(
    ("written", "echoed"),
    [
        ("0 8 snapshot a b p 8", "0 8 snapshot a b P 8"),
        ("0 8 snapshot a b no 8 0", "0 8 snapshot a b N 8"),
        (
            "0 8 snapshot a b po 8 2 Discard_Passdown_Origin discard_zeroes_cow",
            "0 8 snapshot a b PO 8 2 discard_zeroes_cow discard_passdown_origin",
        ),
        ("0 8 flakey a 0 1 1", "0 8 flakey a 0 1 1 0"),
        ("0 8 flakey a 0 1 1 2 error_writes error_reads", "0 8 flakey a 0 1 1 0"),
        (
            "0 8 flakey a 0 1 1 6 corrupt_bio_byte 1 R 2 0 drop_writes",
            "0 8 flakey a 0 1 1 6 drop_writes corrupt_bio_byte 1 r 2 0",
        ),
        ("0 64 mirror core 1 8 2 a 0 b 0 0", "0 64 mirror core 1 8 2 a 0 b 0"),
        (
            "0 64 crypt c 00 0 a 0 2 sector_size:4096 Allow_Discards",
            "0 64 crypt c 00 0 a 0 2 allow_discards sector_size:4096",
        ),
        ("0 64 error a 0", "0 64 error"),
    ],
)
def test_canonical_is_what_the_kernel_echoes(written: str, echoed: str) -> None:
    assert str(Table.parse(written).canonical()) == echoed
    assert Table.parse(echoed).canonical() == Table.parse(written).canonical()


def test_devices_are_found_and_renamed_wherever_they_hide() -> None:
    text = (
        "0 64 linear a 0\n"
        "64 64 mirror disk 2 l 8 2 b 0 c 0\n"
        "128 64 raid raid4 3 8 journal_dev j 3 m d - e - -\n"
        "192 64 integrity f 0 4 J 1 meta_device:g"
    )
    table = Table.read(text)
    assert table.devices == ("a", "l", "b", "c", "j", "m", "d", "e", "g", "f")
    renamed = table.with_devices(lambda name: f"/dev/{name}")
    assert renamed.devices == tuple(f"/dev/{name}" for name in table.devices)
    assert renamed.with_devices(lambda name: name.removeprefix("/dev/")) == table


CONCISE = r"""dm-linear,,1,rw,
    0 32768 linear 8:1 0,
    32768 1024000 linear 8:2 0;
  dm-verity,,3,ro,
    0 1638400 verity 1 /dev/sdc1 /dev/sdc2 4096 4096 204800 1 sha256
    ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42
    5ebfe87f7df3235b80a117ebc4078e44f55045487ad4a96581d1adb564615b51"""


def test_concise_format_of_the_documentation() -> None:
    linear, verity = parse_concise(CONCISE)
    assert (linear.name, linear.minor, linear.readonly) == ("dm-linear", 1, False)
    assert linear.table.length == 32768 + 1024000
    assert (verity.name, verity.readonly) == ("dm-verity", True)
    assert str(linear) == "dm-linear,,1,rw,0 32768 linear 8:1 0,32768 1024000 linear 8:2 0"


def test_concise_fields_are_quoted() -> None:
    (device,) = read_concise(r"a\,b\;c\\d,LVM-1,,rw,0 8 linear /dev/x\,y 0")
    assert device.name == r"a,b;c\d"
    assert device.table.devices == ("/dev/x,y",)
    assert read_concise(str(device)) == (device,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c", "name,uuid,minor"),
        ("a,,,xx,0 8 zero", "must be ro or rw"),
        ("a,,x,rw,0 8 zero", "minor number or empty"),
        ("a,,,rw,0 8 snapshot x y P 3", "power of two"),
    ],
)
def test_bad_concise_lines_say_which_field(text: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse_concise(text)
