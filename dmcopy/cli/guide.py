"""`dmcopy guide [TOPIC]`: the guides, as they come with the package."""

from __future__ import annotations

import argparse

from dmcopy.cli.output import add_json, emit_json
from dmcopy.errors import UsageError
from dmcopy.suggest import did_you_mean


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "topic", nargs="?", metavar="TOPIC", help="the guide (default: list them all)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print one guide, or what there is."""
    from importlib import resources

    pages = {
        entry.name.removesuffix(".md"): entry.read_text(encoding="utf-8")
        for entry in resources.files("dmcopy").joinpath("guide").iterdir()
    }
    if args.topic is None:
        titles = {topic: _title(pages[topic]) for topic in sorted(pages)}
        if args.json:
            emit_json(titles)
        else:
            print("\n".join(f"{topic:<10} {title}" for topic, title in titles.items()))
    elif args.topic not in pages:
        hint = did_you_mean(args.topic, sorted(pages))
        raise UsageError(f"there is no guide on {args.topic}{hint}: see 'dmcopy guide'")
    elif args.json:
        emit_json({"topic": args.topic, "text": pages[args.topic]})
    else:
        print(pages[args.topic], end="")
    return 0


def _title(page: str) -> str:
    return page.split("\n", 1)[0].removeprefix("# ")
