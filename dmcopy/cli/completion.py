"""`dmcopy completion SHELL`: the completion that was made for a shell when dmcopy was built."""

from __future__ import annotations

import argparse
from typing import Final

from dmcopy.errors import MissingError

FILES: Final = {
    "bash": "share/bash-completion/completions/dmcopy",
    "fish": "share/fish/vendor_completions.d/dmcopy.fish",
    "zsh": "share/zsh/site-functions/_dmcopy",
}
"""Where each is installed, below the environment: where the shells look below /usr and ~/.local."""

_EXAMPLES: Final = """\
examples:
  eval "$(dmcopy completion bash)"                          in ~/.bashrc
  dmcopy completion zsh > ~/.zfunc/_dmcopy                  a folder of zsh's fpath
  dmcopy completion fish > ~/.config/fish/completions/dmcopy.fish

With 'pip install --user' bash and fish find it by themselves.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("shell", choices=sorted(FILES), metavar="SHELL", help="bash, fish or zsh")


def run(args: argparse.Namespace) -> int:
    from importlib import metadata
    from pathlib import Path

    try:
        installed = metadata.files("dmcopy") or ()
    except metadata.PackageNotFoundError:
        installed = ()
    for file in installed:
        place = Path(file.locate())
        if str(place).endswith(FILES[args.shell]) and place.exists():
            print(place.read_text(encoding="utf-8"), end="")
            return 0
    raise MissingError(
        "the completion is made where dmcopy is built, and was not installed: "
        "install dmcopy with pip, again if it is an older one"
    )
