"""The plugin's fixtures, its mark `dm`, its options and what it says of what is lacking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.testing import needs

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *args)


def test_every_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_all(dm, scratch_disk, scratch_file, linear, striped, snapshot, mirror, stack,
                     faulty, troubled_disk, dm_place):
            assert dm_place == "model"
            disk = scratch_disk("1M")
            assert scratch_file("1M").stat().st_size == 1 << 20
            for made in (linear(disk), striped(disk, troubled_disk("1M")), snapshot(disk), faulty(),
                         mirror(scratch_disk("1M"), scratch_disk("1M")), dm("0 8 zero"),
                         *stack({"low": "0 8 error"}).values()):
                made.statuses()
        """
    )
    result = run(pytester, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_all[[]model] PASSED*"])


@pytest.fixture
def marked(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(
        """
        import os, pytest

        def test_plain(): pass

        @pytest.mark.dm
        def test_marked(): pass

        @pytest.mark.dm(targets=["snapshot", "linear"], kernel=">=6.1,<7.0")
        def test_good(dm): pass

        @pytest.mark.dm(targets=["thin", "linear", "vdo"])
        def test_targets(dm): pass

        @pytest.mark.dm(kernel=">=6.13")
        class TestNew:
            @pytest.mark.dm(disks=["1M,serial=data"])
            def test_kernel(self, dm): pass

        @pytest.mark.dm(root=True)
        def test_root(): pass

        @pytest.mark.dm(disks=["1M,serial=data"])
        def test_disk(dm):
            assert [disk.serial for disk in dm.disks] == ["data"]
            assert dm.disks[0].sectors == 2048
        """
    )
    return pytester


def test_a_skip_names_what_lacks(marked: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = run(marked, "-rs")
    result.assert_outcomes(passed=4, skipped=3)
    result.stdout.fnmatch_lines_random(
        [
            "*test_a_skip_names_what_lacks.py:*: model: the model has no target thin, vdo",
            "*: model: the model does as kernel 6.12, and the test is for >=6.13",
            "*: model: not root",
        ]
    )


@pytest.mark.parametrize("how", ["option", "ini"])
def test_what_lacks_is_an_error_when_strict(
    marked: pytest.Pytester, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    if how == "ini":
        marked.makeini("[pytest]\ndm_strict = true")
    result = run(marked, *["--dm-strict"] * (how == "option"))
    result.assert_outcomes(passed=4, errors=3)
    result.stdout.fnmatch_lines(["*model: the model has no target thin, vdo (--dm-strict)*"])


@pytest.mark.parametrize(
    "reason", ["not root", "no dmsetup (apt-get install dmsetup)", "no device-mapper in the kernel"]
)
def test_a_host_that_lacks_it(
    marked: pytest.Pytester, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "missing_here", lambda: reason)
    result = run(marked, "--dm=model,host", "-rs", "-v", "-k", "good or plain")
    result.assert_outcomes(passed=2, skipped=1, deselected=10)
    result.stdout.fnmatch_lines(
        [
            "*test_good[[]model] PASSED*",
            "*test_good[[]host] SKIPPED*",
            f"*: host: {reason}; run it*",
        ]
    )


@pytest.mark.parametrize(
    ("targets", "version", "loops", "says"),
    [
        ({"linear"}, (6, 12), True, f"the kernel {os.uname().release} has no target snapshot"),
        ({"linear", "snapshot"}, (5, 10), True, "the kernel is 5.10, and the test is for >=6.1,<7"),
        ({"linear", "snapshot"}, (6, 12), False, "no loop devices (modprobe loop)"),
    ],
)
def test_a_kernel_that_lacks_it(
    marked: pytest.Pytester,
    targets: set[str],
    version: tuple[int, int],
    loops: bool,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(needs, "missing_here", lambda: "")
    monkeypatch.setattr(needs, "release_version", lambda _: version)
    monkeypatch.setattr(needs, "_has_target", lambda name: name in targets)
    monkeypatch.setattr(os.path, "exists", lambda path: loops and exists(path))
    result = run(marked, "--dm=host", "-rs", "-k", "good")
    result.assert_outcomes(skipped=1, deselected=6)
    result.stdout.fnmatch_lines([f"SKIPPED*: host: {says}*; run it in a guest: pytest --vm 6.1"])


def test_places_from_the_ini_file(marked: pytest.Pytester) -> None:
    marked.makeini("[pytest]\ndm = model, host")
    result = run(marked, "--collect-only", "-q", "-k", "good")
    result.stdout.fnmatch_lines(["*::test_good[[]model]", "*::test_good[[]host]"])
    result = run(marked, "--collect-only", "-q", "-k", "good", "--dm=model")
    result.stdout.no_fnmatch_line("*host*")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--dm=laptop"], "*--dm: no place 'laptop': give one or more of model, host, vm*"),
        (["--dm=vm"], "*--dm=vm: say in which kernels, as in --vm 6.1,6.12*"),
        (["--vm=6.1,,6.12"], "*give one or more kernels, as in --vm 6.1,6.12*"),
    ],
)
def test_wrong_options(marked: pytest.Pytester, args: list[str], complaint: str) -> None:
    result = run(marked, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("'snapshot'", "*it knows targets, kernel, root and disks, not 'snapshot'*"),
        ("target=['a']", "*it knows targets, kernel, root and disks, not target*"),
        ("targets='snapshot'", "*targets='snapshot': write a list*"),
        ("kernel='6.1'", "*kernel='6.1': write it as '>=6.1' or '>=6.1,<6.12'*"),
        ("disks=['1G']", "*'1G' is not a disk: give SIZE,serial=NAME*"),
    ],
)
def test_a_wrong_mark_is_told_before_anything_runs(
    pytester: pytest.Pytester, words: str, complaint: str
) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        def test_first(): assert 0
        @pytest.mark.dm({words})
        def test_it(): pass
        """
    )
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])
    result.stderr.fnmatch_lines(["*::test_it[[]model]: the mark dm is wrong*"])


def test_a_path_where_nothing_can_be_served(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_mounts, "why_not", lambda: "there is no /dev/fuse")
    pytester.makepyfile("def test_it(linear, scratch_disk): linear(scratch_disk('1M')).path")
    result = run(pytester, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*have no path for programs here: there is no /dev/fuse"])
    run(pytester, "--dm-strict").assert_outcomes(failed=1)


def test_what_a_test_raises_is_its_failure_though_cleaning_up_fails(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import os, pytest
        def test_it(dm, scratch_disk):
            print("folder", dm.environment.folder)
            dm.devices.append(None)      # what cannot be removed
            raise RuntimeError("the test's own")
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: the test's own*"])
    (folder,) = {line.split()[1] for line in result.outlines if line.startswith("folder ")}
    assert not Path(folder).exists()  # what can be removed all the same is


@pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not())
def test_a_program_that_forgets_an_fsync_is_caught_by_a_power_cut(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        def append(path, careful):
            with open(path, "r+b", buffering=0) as file:
                for record in (b"1", b"2"):
                    file.write(record * 4096)
                    if careful or record == b"1":
                        os.fsync(file.fileno())

        @pytest.mark.parametrize("careful", [True, False])
        def test_it(linear, scratch_disk, power_cut, careful):
            device = linear(scratch_disk("1M"))
            power_cut(append, device.path, careful)
            with device.open() as io:
                assert (io.read(0, 1)[:1], io.read(8, 1)[:1]) == (b"1", b"2")
        """
    )
    result = run(pytester, "--dm-strict")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*test_it[[]model-False[]]*"])


def test_the_marks_are_listed(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--markers")
    result.stdout.fnmatch_lines_random(["@pytest.mark.dm(targets=*", "@pytest.mark.kernel(either*"])


def test_a_run_without_devices_imports_nothing_of_the_engine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    program = (
        "import sys, pytest; status = pytest.main(['-q']); "
        "print([name for name in sys.modules if name.startswith('dmcopy.')]); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    names = ("contents", "crash_plugin", "needs", "options", "plugin")
    assert sorted(eval(done.stdout.splitlines()[-1])) == [
        "dmcopy.testing",
        *(f"dmcopy.testing.{name}" for name in names),
    ]


def test_pytest_does_not_rewrite_the_package_of_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        # As pytest does where dmcopy is installed from a wheel, before it loads the plugin.
        marking="""
        import sys
        for finder in sys.meta_path:
            getattr(finder, "mark_rewrite", str)("dmcopy")
        """,
        test_it="""
        import sys
        def test_it(dm):
            names = [name for name in sys.modules if name.startswith("dmcopy.")]
            loaders = {name: type(sys.modules[name].__loader__).__name__ for name in names}
            del loaders["dmcopy.testing"]
            assert set(loaders.values()) == {"SourceFileLoader"}, loaders
        """,
    )
    result = pytester.runpytest_subprocess("-p", "marking", "-p", "no:cacheprovider", timeout=60)
    result.assert_outcomes(passed=1)


def test_workers_side_by_side(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_it(snapshot, mirror, scratch_disk, number):
            made = snapshot(scratch_disk("1M", serial="data"))
            with made.origin.open() as origin, made.open() as snap:
                origin.write(0, bytes([number]) * 4096)
                assert snap.read(0, 8) == bytes(4096)
            mirror(scratch_disk("1M"), scratch_disk("1M")).wait_in_sync()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n4", timeout=120)
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["model: dmcopy *, snapshot *"])
