"""What is made of the parser where a wheel is built: man pages, and the shells' completions."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from dmcopy.cli.completion import FILES
from dmcopy.cli.main import NOUNS, main

ROOT = Path(__file__).parents[3]


@functools.cache
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "scripts/pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def built() -> dict[str, str]:
    return dict(pages().files())


def test_every_noun_has_a_page() -> None:
    listed = [place for place in built() if place.startswith("share/man/man1/dmcopy-")]
    assert listed == [f"share/man/man1/dmcopy-{noun}.1" for noun in NOUNS]
    for noun in NOUNS:
        name = f"dmcopy-{noun}(1)".replace("-", "\\-")
        assert f".B {name}" in built()["share/man/man1/dmcopy.1"]


@pytest.mark.parametrize("noun", ["copy", "snapshot", "mirror", "cow", "mirror-log"])
def test_a_page_has_what_the_help_says(noun: str) -> None:
    page = built()[f"share/man/man1/dmcopy-{noun}.1"]
    example = page.partition(".SH EXAMPLES")[2].partition(".SH")[0]
    assert f"dmcopy {noun.replace('-', chr(92) + '-')} " in example
    assert "Ends with 0 " in page.partition(".SH EXIT STATUS")[2]
    assert "examples:" not in page


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff to read them with")
def test_roff_finds_nothing_wrong_with_the_pages() -> None:
    for place, text in built().items():
        if place.endswith(".1"):
            command = ["groff", "-man", "-Kutf8", "-Tutf8", "-ww", "-rLL=200n", "-z"]
            done = subprocess.run(
                command, input=text, text=True, capture_output=True, check=True, timeout=60
            )
            assert done.stderr == "", place


@pytest.mark.parametrize("shell", FILES)
def test_a_shell_takes_its_completion(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    script = tmp_path / "dmcopy"
    script.write_text(built()[FILES[shell]])
    subprocess.run([shell, "-n", str(script)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("dmcopy snap", "snapshot"),
        ("dmcopy copy --on-error ", "stop skip"),
        ("dmcopy cow check --or", "--origin"),
        ("dmcopy cow check --origin {folder}/dis", "{folder}/disk.img"),
        ("dmcopy completion ", "bash fish zsh"),
        ("dmcopy guide mirr", "mirrors"),
    ],
)
def test_bash_completes_words(typed: str, offered: str, tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(built()[FILES["bash"]])
    (tmp_path / "disk.img").touch()
    words = typed.format(folder=tmp_path).split(" ")
    text = (
        '. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        "$(complete -p dmcopy | sed 's/.*-F \\([^ ]*\\).*/\\1/') && echo \"${COMPREPLY[*]}\""
    )
    command = ["bash", "-c", text, str(tmp_path / "completion"), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == offered.format(folder=tmp_path)


ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PROMPT=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D
dmcopy() print -r -- \"<\$*>\"
print be''gin"
zpty -r -m shell said '*begin*'
for typed in ${@:2}; do
  zpty -w -n shell "$typed"$'\t\n'
  zpty -r -m shell said '*<*>*'
  print -r -- ${${said##*<}%%>*}
done
zpty -d shell
"""


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
def test_zsh_completes_words(tmp_path: Path) -> None:
    """In a shell with a terminal, by the key Tab; the words are printed as dmcopy is given them."""
    (tmp_path / "_dmcopy").write_text(built()[FILES["zsh"]])
    (tmp_path / "disk.img").touch()
    completed = {
        "snap": "snapshot",
        "copy --on-error sk": "copy --on-error skip",
        "cow check --or": "cow check --origin",
        f"cow check --origin {tmp_path}/dis": f"cow check --origin {tmp_path}/disk.img",
        "guide mirr": "guide mirrors",
        "mirror-l": "mirror-log",
    }
    lines = [f"dmcopy {typed}" for typed in completed]
    command = ["zsh", "-f", "-c", ZSH, "zsh", str(tmp_path), *lines]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == list(completed.values())


def test_the_completion_that_was_installed_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert "complete -o" in capsys.readouterr().out
