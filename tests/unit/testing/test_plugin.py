"""The pytest plugin, with a process of this machine in the place of a guest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy import vm
from dmcopy.block import tools
from dmcopy.errors import UsageError
from dmcopy.testing import guest_run, guest_settings, needs, plugin, reporter
from dmcopy.vm import kernels, machine, vagrant
from tests.unit.testing.fake_guest import FakeGuest
from tests.waiting import until

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeGuest]]:
    monkeypatch.setattr(vm, "guest", FakeGuest)
    monkeypatch.setattr(vm, "check", lambda _: None)
    # The conftests below replace it in this process: kernel tests that follow are to be skipped.
    monkeypatch.setattr(plugin, "missing_here", plugin.missing_here)
    monkeypatch.setattr(needs, "missing_here", needs.missing_here)
    for name in ("PYTEST_ADDOPTS", "DMCOPY_TEST"):  # which the command to repeat a test names
        monkeypatch.delenv(name, raising=False)
    FakeGuest.booted, FakeGuest.closed = [], 0
    yield FakeGuest
    assert len(FakeGuest.booted) == FakeGuest.closed


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(
        # The "guest" is this machine, which need not have device-mapper.
        "from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''"
    )
    pytester.makepyfile(
        textwrap.dedent(
            """
            import os, sys, pytest

            def test_plain():
                assert "GUEST_PID" not in os.environ

            @pytest.mark.kernel
            def test_good():
                assert "GUEST_PID" in os.environ

            @pytest.mark.kernel
            @pytest.mark.parametrize("x", [1, 2])
            def test_of(x):
                print("printed", x)
                assert x == 1

            @pytest.mark.kernel
            def test_skipped():
                pytest.skip("a reason")

            @pytest.mark.kernel
            @pytest.mark.xfail(strict=True)
            def test_xfailed():
                assert 0

            @pytest.fixture
            def broken():
                yield
                raise OSError("in the teardown")

            @pytest.mark.kernel
            def test_teardown(broken):
                pass
            """
        )
    )
    return pytester


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *args)


def test_results_of_two_kernels_are_replayed(suite: pytest.Pytester) -> None:
    result = run(suite, "--vm", "6.1,6.12", "-v", "-rA")
    result.assert_outcomes(passed=7, failed=2, skipped=2, xfailed=2, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*test_plain PASSED*",
            "*test_good[[]6.1] PASSED*",
            "*test_of[[]1-6.1] PASSED*",
            "*test_of[[]2-6.1] FAILED*",
            "*test_skipped[[]6.1] SKIPPED*",
            "*test_good[[]6.12] PASSED*",
        ]
    )
    result.stdout.fnmatch_lines(["*OSError: in the teardown*", "*assert 2 == 1*", "printed 2"])
    assert FakeGuest.booted == ["6.1", "6.12"]
    assert FakeGuest.closed == 2


def test_kernels_from_the_ini_file(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nvm = 6.1")
    run(suite, "-k", "good").assert_outcomes(passed=1, deselected=6)
    run(suite, "-k", "good", "--vm=6.12").assert_outcomes(passed=1, deselected=6)
    assert FakeGuest.booted == ["6.1", "6.12"]


def test_selection_by_word_and_kernel(suite: pytest.Pytester) -> None:
    result = run(suite, "--vm", "6.1,6.12", "-k", "good and 6.12")
    result.assert_outcomes(passed=1, deselected=12)
    assert FakeGuest.booted == ["6.12"]


def test_no_guest_boots_for_nothing(suite: pytest.Pytester) -> None:
    run(suite, "--vm", "6.1", "-k", "plain").assert_outcomes(passed=1, deselected=6)
    result = run(suite, "--vm", "6.1", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*::test_good[[]6.1]"])
    assert FakeGuest.booted == []


@pytest.fixture
def dealt(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        test_one="""
        import pytest
        pytestmark = pytest.mark.kernel(either=True)
        @pytest.mark.parametrize("x", [1, 2])
        def test_of(x): pass
        def test_alone(): pass
        @pytest.mark.kernel(either=False)
        def test_both(): pass
        """,
        test_two="""
        import pytest
        @pytest.mark.kernel
        def test_each(): pass
        @pytest.mark.kernel(either=True)
        class TestThese:
            def test_first(self): pass
            @pytest.mark.kernel
            def test_second(self): pass
        """,
    )
    return pytester


def names(pytester: pytest.Pytester, *args: str) -> list[str]:
    result = run(pytester, "--collect-only", "-q", *args)
    return [line.rpartition("::")[2] for line in result.outlines if "::" in line]


def test_what_runs_on_either_kernel_is_dealt(dealt: pytest.Pytester) -> None:
    first = ["test_of[1-6.1]", "test_alone[6.1]", "test_both[6.1]", "test_each[6.1]"]
    second = ["test_of[2-6.12]", "test_both[6.12]", "test_each[6.12]"]
    last = ["test_second[6.1]", "test_first[6.12]"]
    assert names(dealt, "--vm", "6.1,6.12") == [*first, last[0], *second, last[1]]
    run(dealt, "--vm", "6.1,6.12", "-v").assert_outcomes(passed=9)
    assert FakeGuest.booted == ["6.1", "6.12"]
    assert names(dealt, "--vm", "6.1,6.12", "test_two.py") == [
        *("test_each[6.1]", "test_first[6.1]", "test_each[6.12]", "test_second[6.12]")
    ]


def test_what_runs_on_either_kernel_goes_where_less_is_to_do(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.kernel(either=True)
        @pytest.mark.kernel(cost=3)
        def test_long(): pass
        @pytest.mark.parametrize("x", range(5))
        def test_short(x): pass
        @pytest.mark.kernel(either=False, cost={"6.12": 2})
        def test_new(): pass
        @pytest.mark.parametrize("x", range(3))
        def test_last(x): pass
        """
    )
    early = [f"test_short[{x}-6.12]" for x in range(3)]
    assert names(pytester, "--vm", "6.1,6.12") == [
        *("test_long[6.1]", "test_short[3-6.1]", "test_new[6.1]", "test_last[0-6.1]"),
        *("test_last[1-6.1]", "test_last[2-6.1]", *early, "test_short[4-6.12]", "test_new[6.12]"),
    ]


def test_all_of_it_runs_on_one_kernel_and_in_a_long_run(
    dealt: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = names(dealt, "--vm", "6.12")
    assert len(alone) == 7
    monkeypatch.setenv("DMCOPY_TEST", "long")
    both = names(dealt, "--vm", "6.1,6.12")
    assert both == [name.replace("6.12", "6.1") for name in alone] + alone


@pytest.mark.parametrize("processors", [1, 2])
def test_stop_at_the_first_failure(
    suite: pytest.Pytester, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    result = run(suite, "--vm", "6.1,6.12", "-x")
    result.assert_outcomes(passed=3, failed=1)
    assert FakeGuest.booted == ["6.1", "6.12"][:processors]


def test_guests_run_side_by_side(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    one_by_one = run(suite, "--vm", "6.1").parseoutcomes()
    three = run(suite, "--vm", "6.1,6.12,6.6").parseoutcomes()
    assert FakeGuest.booted == ["6.1", "6.1", "6.12", "6.6"]
    assert three["failed"] == 3 * one_by_one["failed"]


def test_last_failed(suite: pytest.Pytester) -> None:
    suite.runpytest_inprocess("--vm", "6.1")
    result = suite.runpytest_inprocess("--vm", "6.1", "--lf")
    result.assert_outcomes(passed=1, failed=1, errors=1)


def test_junit(suite: pytest.Pytester) -> None:
    run(suite, "--vm", "6.1", "--junitxml=junit.xml")
    text = (suite.path / "junit.xml").read_text()
    assert 'name="test_good[6.1]"' in text
    assert "assert 2 == 1" in text


def test_a_guest_that_dies_is_the_failure_of_one_test(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import os, pytest, signal, time
        pytestmark = pytest.mark.kernel
        def test_before(): pass
        def test_deadly():
            time.sleep(1)
            os.kill(int(os.environ["GUEST_PID"]), signal.SIGKILL)
            time.sleep(1)
        def test_after(): pass
        """
    )
    result = run(pytester, "--vm", "6.1")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*test_deadly*", "not run to its end: lost VM: the guest hung up"])
    assert FakeGuest.booted == ["6.1", "6.1"]


def test_a_test_that_kills_its_pytest(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import os, pytest, signal
        pytestmark = pytest.mark.kernel
        def test_deadly(): os.kill(os.getpid(), signal.SIGKILL)
        def test_after(): pass
        """
    )
    result = run(pytester, "--vm", "6.1")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["not run to its end: pytest ended with 137 in the guest*"])
    result.stdout.fnmatch_lines(
        ["*run it alone*", "pytest --vm=6.1 test_a_test_that_kills_its_pytest.py::test_deadly"]
    )


def test_a_guest_that_cannot_boot(suite: pytest.Pytester) -> None:
    result = run(suite, "--vm", "lost")
    result.assert_outcomes(passed=1, failed=6)
    result.stdout.fnmatch_lines(["not run to its end: no qemu here: install it"])


def test_a_guest_that_goes_silent(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import pytest, time
        @pytest.mark.kernel
        def test_slow(): time.sleep(12)  # outlives the test for a moment only
        """
    )
    result = run(pytester, "--vm", "6.1", "--vm-silence", "3")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no result from the guest for 3 s*"])


def test_a_warning_in_the_guest_is_one_here(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_other="""
        import pytest, warnings
        @pytest.mark.kernel
        def test_it(): warnings.warn("differed once")
        """
    )
    result = run(suite, "--vm", "6.1", "test_other.py")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["test_other.py::test_it in 6.1", "*UserWarning: differed once*"])


def test_a_guest_imports_no_hypothesis_that_no_test_does(pytester: pytest.Pytester) -> None:
    """Its plugin would, at the end of each run."""
    pytest.importorskip("hypothesis")
    pytester.makeconftest(
        """
        import os, pathlib, sys
        from dmcopy.testing import plugin
        plugin.missing_here = lambda: ''

        def pytest_unconfigure(config):
            if "GUEST_PID" in os.environ:
                assert config.pluginmanager.hasplugin("terminalreporter")
                pathlib.Path("imported").write_text(str("hypothesis" in sys.modules))
        """
    )
    for words, imported in (("import pytest", "False"), ("import hypothesis, pytest", "True")):
        pytester.makepyfile(test_it=f"{words}\n@pytest.mark.kernel\ndef test_it(): pass")
        run(pytester, "--vm", "6.1").assert_outcomes(passed=1)
        assert Path("imported").read_text() == imported


def test_what_pytest_in_the_guest_complains_of_is_shown(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_other="""
        import os, pytest
        if "GUEST_PID" in os.environ:
            raise RuntimeError("only in a guest")
        @pytest.mark.kernel
        def test_it(): pass
        """
    )
    result = run(suite, "--vm", "6.1", "test_other.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*only in a guest*"])


def test_without_a_guest_what_is_missing_is_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "missing_here", lambda: "no device-mapper in the kernel 1.2")
    pytester.makepyfile("import pytest\n@pytest.mark.kernel\ndef test_it(): assert 0")
    result = run(pytester, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no device-mapper in the kernel 1.2; run it in a guest*"])
    result = run(pytester, "--dm-strict")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*kernel 1.2; run it in a guest: pytest --vm 6.1 (--dm-strict)"])


def test_in_place_where_there_is_device_mapper(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "missing_here", lambda: "")
    monkeypatch.delenv("DMCOPY_DISKS", raising=False)
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.kernel
        def test_it(): pass
        def test_disks(scratch_disks): pass
        """
    )
    run(pytester).assert_outcomes(passed=1, skipped=1)


def test_what_crosses_to_the_guest(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(
        """
        from dmcopy.testing import needs
        needs.missing_here = lambda: ''
        def pytest_addoption(parser):
            parser.addoption("--flavour")
            parser.addoption("--loud", action="store_true")
            parser.addoption("--more", action="append")
        """
    )
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.mark.kernel
        @pytest.mark.dm(disks=["1G,serial=big", "128M,serial=b"])
        def test_it(request):
            option = request.config.getoption
            assert option("--flavour") == "sour"
            assert option("--loud")
            assert option("--more") == ["x", "y"]
            assert os.environ["TOKEN"] == "t"
        """
    )
    monkeypatch.setenv("TOKEN", "t")
    (pytester.path / "out").mkdir()
    words = ["--flavour", "sour", "--loud", "--more=x", "--more", "y", "-v", "--vm-env=TOKEN"]
    result = run(pytester, "--vm=6.1", *words, "--vm-share=out", "--vm-disk=2G,serial=mine")
    result.assert_outcomes(passed=1)
    sizes = {"a": "256M", "b": "128M", "c": "256M", "d": "256M", "mine": "2G", "big": "1G"}
    assert sizes == FakeGuest.disks
    assert FakeGuest.shares == [pytester.path / "out"]
    assert FakeGuest.memory == "2G"
    run(pytester, "--vm=6.1", "--vm-memory=3G")
    assert FakeGuest.memory == "3G"


def test_what_changes_how_a_test_runs_crosses(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makeini("[pytest]\naddopts = -n2")
    pytester.makepyfile(
        more="import pytest\n@pytest.fixture\ndef given(): return 7",
        test_it="""
        import pytest, time, warnings
        pytestmark = pytest.mark.kernel
        def test_plugin(given): assert given == 7
        def test_ini(request): assert request.config.getini("xfail_strict")
        def test_warning(): warnings.warn("no")
        def test_slow(): time.sleep(60)
        """,
    )
    words = ["-n0", "-p", "more", "-W", "error:no:UserWarning", "-o", "xfail_strict=1"]
    pytester.syspathinsert()
    result = run(pytester, "--vm=6.1", "--timeout=2", *words, "-rA")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines_random(
        ["FAILED *::test_warning*UserWarning: no", "FAILED *::test_slow*Timeout (>2*"]
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--vm=5.99"], "*--vm: 5.99: no such kernel: use one of 6.1, 6.12*"),
        (["--vm=/nowhere/vmlinuz"], "*--vm: /nowhere/vmlinuz: no such kernel image*"),
        (["--vm=6.1", "--vm-share=nowhere"], "*--vm-share nowhere: there is no such folder*"),
        (["--vm=6.1", "--vm-disk=big"], "*--vm: 'big' is not a disk*"),
    ],
)
def test_what_no_guest_can_have_is_told_before_anything_runs(
    suite: pytest.Pytester, words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "check", kernels.check)
    monkeypatch.setattr(machine, "find_qemu", lambda: "/usr/bin/qemu")
    result = run(suite, *words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])
    result.stdout.no_fnmatch_line("*PASSED*")


def test_no_qemu_is_told_before_anything_runs(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "check", kernels.check)
    monkeypatch.setattr(tools, "which", lambda _: None)
    result = run(suite, "--vm=6.1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--vm: no qemu-system-x86_64 here: apt-get install*"])


def test_marks_that_want_one_disk_in_two_sizes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.dm(disks=["1G,serial=x"])
        def test_one(): pass
        @pytest.mark.dm(disks=["2G,serial=x"])
        def test_two(): pass
        """
    )
    result = run(pytester, "--vm=6.1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_two* wants disk x of 2G, and another test of 1G*"])


def test_a_power_cut_kills_the_guest_and_the_test_begins_again(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import pathlib, pytest
        pytestmark = pytest.mark.kernel
        log = pathlib.Path("log")

        def test_before(): pass

        def test_cut(request):
            from dmcopy.testing.kit import PowerCut
            machine = request.config.pluginmanager.getplugin("dmcopy-reporter")
            cut = PowerCut(None, request.node.nodeid, machine)
            with log.open("a") as file: file.write("begin ")
            cut(lambda: log.open("a").write("one "))
            cut.cut(lambda: log.open("a").write("two "), seed=7)
            with log.open("a") as file: file.write("end")

        def test_after(request):
            from dmcopy.testing.kit import PowerCut
            machine = request.config.pluginmanager.getplugin("dmcopy-reporter")
            PowerCut(None, request.node.nodeid, machine)(lambda: log.open("a").write(" three"))
        """
    )
    result = run(pytester, "--vm=6.1", "-v")
    result.assert_outcomes(passed=3)
    assert (pytester.path / "log").read_text() == "begin one begin two begin end three"
    assert FakeGuest.booted == ["6.1"] * 4


def test_a_limit_counts_the_test_alone(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import pytest, time
        pytestmark = pytest.mark.kernel
        @pytest.mark.timeout(1)
        def test_slow(): time.sleep(60)
        @pytest.mark.timeout(5)
        def test_quick(): pass
        """
    )
    monkey = FakeGuest.boot_seconds
    FakeGuest.boot_seconds = 1.5
    try:
        result = run(pytester, "--vm=6.1")
    finally:
        FakeGuest.boot_seconds = monkey
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Timeout*1*"])


def test_a_test_that_outlasts_its_limit_in_the_kernel(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_run, "GRACE_SECONDS", 1.0)
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import os, pytest, signal, time
        pytestmark = pytest.mark.kernel
        @pytest.mark.timeout(1)
        def test_hung():
            os.kill(os.getpid(), signal.SIGSTOP)     # as one that waits for a disk: no signal helps
        def test_after(): pass
        """
    )
    result = run(pytester, "--vm=6.1")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*not done within its limit of 1 s, nor 1 s later*"])
    assert FakeGuest.booted == ["6.1", "6.1"]


def test_one_guest_for_each_worker(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", root)
    suite.makeconftest(
        """
        from dmcopy import vm
        from dmcopy.testing import plugin
        from tests.unit.testing.fake_guest import FakeGuest
        plugin.missing_here = lambda: ''
        vm.guest, vm.check = FakeGuest, lambda _: None
        """
    )
    suite.makeini("[pytest]\naddopts = -n2")  # which the guests read, too
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "--vm=6.1", timeout=120)
    result.assert_outcomes(passed=4, failed=1, skipped=1, xfailed=1, errors=1)


def test_the_disks_of_guests_go_with_their_pytest(tmp_path: Path) -> None:
    program = (
        "import os, signal; from dmcopy.testing.guest_settings import DiskFolder; "
        "made = DiskFolder(); (made.path / 'a').write_text('x'); print(made.path, flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path
    until(lambda: not folder.exists(), "the removal of a killed process's folder")


@pytest.mark.parametrize(("workers", "free", "fit"), [(4, 4 << 30, 1), (3, 5 << 30, 2)])
def test_memory_is_counted_before_guests_boot(workers: int, free: int, fit: int) -> None:
    with pytest.raises(UsageError, match=f"use -n {fit}, or a smaller --vm-memory"):
        guest_settings.check_memory(workers, 2 << 30, free)
    guest_settings.check_memory(fit, 2 << 30, free)
    assert guest_settings.available_memory() > 1 << 20


def test_what_a_marked_test_leaves_in_a_guest_is_its_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMCOPY_VM", "1")
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(pytester.path / "runtime"))
    pytester.makeconftest(
        """
        import os, subprocess, pytest
        from dmcopy.ledger import Ledger, identity
        from dmcopy.testing import plugin
        from dmcopy.testing.kit import leaks

        plugin.missing_here = lambda: ''
        if "GUEST_PID" in os.environ:  # of this machine all else is another's
            present = leaks.Present({}, frozenset(), ())
            leaks.Present.now = classmethod(lambda cls: present)

        def serve():
            process = subprocess.Popen(["sleep", "600"])
            Ledger().add("server", "dmcopy serve", uuid=identity(process.pid))
            return process

        @pytest.fixture(scope="module")
        def shared():
            process = serve()
            yield
            process.kill()
            process.wait(60)

        @pytest.fixture
        def own():
            process = serve()
            yield
            process.kill()
            process.wait(60)
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from conftest import serve
        pytestmark = pytest.mark.kernel
        def test_before(shared, own): pass
        def test_leaky(shared, tmp_path):
            (tmp_path / "note").write_text("what it did")
            process = serve()
            process.returncode = 0  # no process's any more
            assert 0
        def test_after(shared): pass
        """
    )
    result = run(pytester, "--vm=6.1")
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaky*",
            "the test has left the server dmcopy serve (process *); it was removed",
            "*files of the test*",
            "*: note",
        ]
    )


@pytest.mark.parametrize("word", ["", "6.1,,6.12"])
def test_no_kernel_named(pytester: pytest.Pytester, word: str) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = run(pytester, f"--vm={word}")
    assert result.ret in ((0,) if not word else (4,))


def test_lines_are_cut_from_a_stream() -> None:
    lines = reporter.Lines()
    stream = b'noise\n\ndmcopy-report {"a": 1}\nmore noise\ndmcopy-report {"a": 2}\n'
    seen = [report for byte in stream for report in lines.feed(bytes([byte]))]
    assert seen == [{"a": 1}, {"a": 2}]
    assert lines.other == b"noise\nmore noise\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--vm-provider=docker"], "--vm-provider: 'docker' is neither qemu nor vagrant"),
        (["--vm=6.6"], "boots the kernel of an installed Debian, one of 6.1, 6.12, and not 6.6"),
        (["--vm-share=."], "what is copied to a Vagrant guest does not come back"),
        ([], "no vagrant here: apt-get install"),
    ],
)
def test_what_vagrant_cannot_do_is_told_before_anything_runs(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = set() if not words else {"vagrant", "virsh", "libvirtd", "rsync", "ssh"}
    monkeypatch.setattr(tools, "which", lambda name: name if name in found else None)
    result = run(suite, "--vm=6.1", "--vm-provider=vagrant", *words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{complaint}*"])
    assert FakeGuest.booted == []


def test_guests_of_vagrant_are_one_machine_for_each_kernel(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines: list[str] = []

    class Machine:
        def __init__(self, kernel: str, disks: list[vm.Disk], mib: int, project: object) -> None:
            assert (mib, project) == (2048, suite.path)
            assert {disk.serial for disk in disks} == set("abcd")
            machines.append(kernel)
            self.kernel, self.disks = kernel, disks

        def boot(self) -> FakeGuest:
            return FakeGuest(self.kernel, self.disks, "2G", ())

        def close(self) -> None:
            machines.append(f"{self.kernel} closed")

    monkeypatch.setattr(vagrant, "VagrantMachine", Machine)
    monkeypatch.setattr(vagrant, "check", lambda _: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    suite.makeini("[pytest]\nvm_provider = vagrant")
    result = run(suite, "--vm=6.1,6.12", "-k", "test_good or test_of")
    result.assert_outcomes(passed=4, failed=2, deselected=7)
    result.stdout.fnmatch_lines(
        ["pytest --vm=6.1 --vm-provider=vagrant 'test_*.py::test_of[[]2[]]'"]
    )
    assert machines == ["6.1", "6.1 closed", "6.12", "6.12 closed"]
