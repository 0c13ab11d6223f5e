"""Reading and writing are inverses for every target, whatever a path may hold."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmcopy.errors import UsageError
from dmcopy.table import (
    TARGETS,
    ConciseDevice,
    CoreLog,
    Delay,
    Delayed,
    DiskLog,
    Error,
    Leg,
    Linear,
    Mirror,
    Multipath,
    OtherLog,
    Path,
    PathGroup,
    Raid,
    RaidLeg,
    Raw,
    Striped,
    Switch,
    Table,
    TableLine,
    Target,
    Vdo,
    Zoned,
    ZonedDevice,
    format_concise,
    parse_concise,
    read_concise,
)
from dmcopy.table.devices import VDO_SKIPPED
from dmcopy.table.record import MAX64, FieldKind, Record, Spec
from dmcopy.table.words import join, split

# A word is anything without a zero byte; what ends or cuts a word has to come back all the same.
WORDS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12
) | st.sampled_from(
    [
        *("/dev/a", "7:17", "/dev/mapper/a b", "/dev/a#b", "a\\", "a\nb", "-x", "#", "é"),
        *(r"/dev/mapper/a\x20b", r"a\\b", "a\\ b", "a\\\\#", "\\"),
    ]
)
NAMES = WORDS.filter(lambda word: word != "-")
NUMBERS = st.integers(0, MAX64)
GROUPS = st.lists(WORDS, max_size=4).map(tuple)
LEGS = st.builds(Leg, NAMES, NUMBERS)


def _value(spec: Spec) -> st.SearchStrategy[Any]:
    if spec.kind is FieldKind.NUMBER:
        value: st.SearchStrategy[Any] = NUMBERS
    elif spec.kind is FieldKind.GROUP:
        value = GROUPS
    else:
        value = st.sampled_from(spec.choices) if spec.choices else NAMES
    return st.none() | value if spec.optional or spec.dash else value


def _declared(cls: type[Record]) -> st.SearchStrategy[Any]:
    fields = {item.name: item.metadata["spec"] for item in dataclasses.fields(cls)}
    values = st.fixed_dictionaries({name: _value(spec) for name, spec in fields.items()})

    # Only the last words may be missing: one that is there needs those before it.
    def trimmed(found: dict[str, Any]) -> Any:
        missing = False
        for name, spec in fields.items():
            missing = missing or (spec.optional and found[name] is None)
            if missing and spec.optional:
                found[name] = None
        return cls(**found)

    return values.map(trimmed)


def _delay(found: list[Delayed]) -> Delay:
    return Delay(*found)


def _group(selector: str, words: tuple[str, ...], paths: list[list[str]], each: int) -> PathGroup:
    made = tuple(Path(path[0], tuple(path[1 : 1 + each])) for path in paths)
    return PathGroup(selector, words, made)


def _vdo(version: str) -> st.SearchStrategy[Vdo]:
    count = sum(VDO_SKIPPED[version])
    return st.builds(
        Vdo,
        st.just(version),
        # A device of this name would be taken for a version, by the kernel too.
        NAMES.filter(lambda name: not name.startswith("V")),
        st.none() if version == "V0" else NUMBERS,
        *(NUMBERS, NUMBERS, NUMBERS, GROUPS),
        st.lists(WORDS, min_size=count, max_size=count).map(tuple),
    )


GROUP = st.integers(0, 3).flatmap(
    lambda each: st.builds(
        _group,
        WORDS,
        GROUPS,
        st.lists(st.lists(WORDS, min_size=1 + each, max_size=1 + each), min_size=1, max_size=3),
        st.just(each),
    )
)
LOGS = st.one_of(
    _declared(CoreLog),
    _declared(DiskLog),
    st.builds(OtherLog, NAMES.filter(lambda word: word not in ("core", "disk")), GROUPS),
)
RAID_LEG = st.builds(RaidLeg, st.none() | NAMES, st.none() | NAMES)
LEG_TUPLES = st.lists(LEGS, max_size=4).map(tuple)
SPECIAL: dict[type[Target], st.SearchStrategy[Any]] = {
    Striped: st.builds(Striped, NUMBERS, LEG_TUPLES),
    Switch: st.builds(Switch, NUMBERS, LEG_TUPLES, GROUPS),
    Error: st.builds(Error, st.none() | LEGS),
    Mirror: st.builds(Mirror, LOGS, LEG_TUPLES, st.none() | GROUPS),
    Delay: st.lists(_declared(Delayed), min_size=1, max_size=3).map(_delay),
    Raid: st.builds(Raid, WORDS, NUMBERS, GROUPS, st.lists(RAID_LEG, max_size=4).map(tuple)),
    Multipath: st.builds(
        Multipath, GROUPS, GROUPS, NUMBERS, st.lists(GROUP, max_size=3).map(tuple)
    ),
    Zoned: st.builds(
        Zoned, st.lists(st.builds(ZonedDevice, WORDS), min_size=1, max_size=3).map(tuple)
    ),
    Vdo: st.sampled_from(sorted(VDO_SKIPPED)).flatmap(_vdo),
}
EVERY = st.one_of(
    *(SPECIAL[cls] if cls in SPECIAL else _declared(cls) for cls in TARGETS.values()),
    st.builds(Raw, WORDS.filter(lambda word: word not in TARGETS), GROUPS),
)


def test_every_target_of_both_kernels_has_a_type() -> None:
    kernel = (
        "cache clone crypt delay dust ebs era error flakey integrity linear log-writes mirror "
        "multipath raid snapshot snapshot-merge snapshot-origin striped switch thin thin-pool "
        "unstriped vdo verity writecache zero zoned"
    )
    assert sorted(TARGETS) == kernel.split()


@given(st.lists(WORDS, max_size=6))
def test_words_survive_quoting(words: list[str]) -> None:
    assert split(join(words)) == words


@settings(max_examples=400)
@given(EVERY, st.integers(0, MAX64), st.integers(0, MAX64))
def test_a_line_reads_back_as_the_same_value(target: Target, start: int, length: int) -> None:
    table = Table((TableLine(start, length, target),))
    again = Table.read(str(table), lenient=False)
    assert again == table
    assert str(again) == str(table)


@given(st.lists(st.tuples(st.integers(1, 99), EVERY), min_size=1, max_size=4))
def test_whole_tables_and_concise_devices_read_back(parts: list[tuple[int, Target]]) -> None:
    table = Table.concat(parts)
    assert Table.read(str(table), lenient=False) == table
    device = ConciseDevice("name, with;odd\\signs", table, "u", 3, True)
    assert read_concise(format_concise([device, device])) == (device, device)


@given(EVERY)
def test_renaming_every_device_twice_is_renaming_none(target: Target) -> None:
    renamed = target.with_devices(lambda name: "x" + name)
    assert renamed.with_devices(lambda name: name[1:]) == target
    assert renamed.devices == tuple("x" + name for name in target.devices)


@given(EVERY, st.integers(1, 1 << 40))
def test_a_check_raises_nothing_but_usage_errors_and_the_rest_is_described(
    target: Target, length: int
) -> None:
    try:
        target.check(length)
    except UsageError:
        return
    assert target.describe()
    assert Table.read(str(Table.of(length, target.canonical())), lenient=False)


@settings(max_examples=300)
@given(st.text("0123456789 snapshotlinear#\\\n/:-\t", max_size=40))
def test_any_text_is_a_table_or_a_usage_error(text: str) -> None:
    try:
        table = Table.read(text)
    except UsageError:
        return
    assert Table.read(str(table)) == table


@pytest.mark.parametrize(
    ("text", "device"),
    [
        # What libdm means, measured on 6.1 and 6.12 with dmsetup 1.02.185.
        (r"/dev/mapper/my\x20disk", r"/dev/mapper/my\x20disk"),
        (r"/d/q\zq", r"/d/q\zq"),
        (r"/d/q\\zq", r"/d/q\\zq"),
        # What libdm cannot say.
        (r"/d/q\ q", "/d/q q"),
        (r"/d/q\#q", "/d/q#q"),
        (r"/d/q\\\ q", r"/d/q\ q"),
        (r"/d/q\\", "/d/q\\"),
    ],
)
def test_a_backslash_is_itself_unless_it_keeps_a_word_together(text: str, device: str) -> None:
    (line,) = Table.parse(f"0 8 linear {text} 0")
    assert line.target == Linear(device, 0)
    assert str(line) == f"0 8 linear {text} 0"
    spec = f"n,,,rw,0 8 linear {text} 0".replace("\\", "\\\\")
    (one,) = parse_concise(spec)
    assert list(one.table) == [line]
