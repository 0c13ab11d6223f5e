"""What a bench run looks like: text for a terminal, markdown for a README, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from tests.bench.figures import Metric, Spread, Table, Verdict, spread

_TIMES = "\N{MULTIPLICATION SIGN}"
_TO = "\N{EN DASH}"


def text(
    tables: Sequence[Table],
    facts: Mapping[str, str],
    left_out: Sequence[str],
    *,
    ratios: bool = False,
) -> str:
    """Return the whole report for a terminal, or no more of the figures than their `ratios`."""
    parts = ["\n".join(f"{name}: {fact}" for name, fact in facts.items())]
    for table in tables:
        rows = _ratios(table) if ratios else _rows(table)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_aligned(row, widths) for row in rows]
        parts.append("\n".join([table.title, *lines, *_remarks(table)]))
    if left_out:
        parts.append("\n".join(["left out:", *(f"  {reason}" for reason in left_out)]))
    return "\n\n".join(parts) + "\n"


def markdown(tables: Sequence[Table], facts: Mapping[str, str], left_out: Sequence[str]) -> str:
    """Return the whole report as markdown."""
    parts = ["; ".join(f"{name} {fact}" for name, fact in facts.items()) + "."]
    for table in tables:
        head, *rows = _rows(table)
        lines = [f"### {table.title}", "", _bar(head), "|---|" + "---:|" * (len(head) - 1)]
        remarks = [f"- {remark.strip()}" for remark in _remarks(table)]
        parts.append("\n".join([*lines, *map(_bar, rows), "", *remarks]))
    parts.extend(f"Left out: {reason}." for reason in left_out)
    return "\n\n".join(parts) + "\n"


def as_json(tables: Sequence[Table], facts: Mapping[str, str], left_out: Sequence[str]) -> str:
    """Return every single run, and the verdicts, as JSON."""
    document = {
        "machine": dict(facts),
        "left_out": list(left_out),
        "tables": [
            {
                **dataclasses.asdict(table),
                "off": table.off,
                "verdicts": [
                    {
                        "text": verdict.target.text,
                        "against": verdict.against,
                        "figure": verdict.figure,
                        "limit": verdict.target.limit,
                        "at_most": verdict.target.at_most,
                        "reached": verdict.reached,
                        "busy": verdict.busy,
                    }
                    for verdict in table.verdicts()
                ],
            }
            for table in tables
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def sentence(verdict: Verdict) -> str:
    """Return one target, what was measured, and whether that reaches it."""
    target = verdict.target
    sign = _TIMES if target.against else ""
    bound = "at most" if target.at_most else "at least"
    against = f" ({verdict.against})" if len(target.against) > 1 and verdict.against else ""
    wanted = f"{bound} {target.limit:g}{sign} {target.text}{against}"
    if verdict.figure is None:
        return f"NOT MEASURED: {wanted}"
    word = "pass" if verdict.reached else "too busy to judge" if verdict.busy else "MISS"
    digits = 2 if target.against else 1
    return f"{word}: {verdict.figure:.{digits}f}{sign}, target {wanted}"


def _rows(table: Table) -> list[list[str]]:
    """Return the table's cells, its heading first; ratios are to dmcopy's row, round by round."""
    unit = table.unit
    ours = next(iter(table.rounds), "")
    rows = [["", unit.value, "range", f"÷ {ours}", f"own {unit.cpu}", "machine's"]]
    for name in table.rounds:
        found = spread(table.values(name))
        if found is None:
            rows.append([name, "failed", "", "", "", ""])
            continue
        ratio = table.ratio(name, ours)
        cpu = spread(table.values(name, Metric.CPU))
        machine = spread([run.machine for run in table.rounds[name] if run and run.machine])
        rows.append(
            [
                name,
                f"{found.median:.{unit.digits}f}",
                f"{found.low:.{unit.digits}f}{_TO}{found.high:.{unit.digits}f}",
                f"{ratio:.2f}" if ratio is not None else "",
                _short(cpu),
                _short(machine),
            ]
        )
    return rows


def _ratios(table: Table) -> list[list[str]]:
    """Return how fast the first row is beside each of the others, and the range of the rounds."""
    ours = next(iter(table.rounds), "")
    rows = [["", f"{ours} is", "range"]]
    for name in table.rounds:
        if name != ours:
            found = spread(table.ratios(ours, name))
            shown = f"{found.median:.2f}{_TIMES}" if found else "failed"
            rows.append([name, shown, f"{found.low:.2f}{_TO}{found.high:.2f}" if found else ""])
    return rows


def _remarks(table: Table) -> list[str]:
    remarks = [f"  {sentence(verdict)}" for verdict in table.verdicts()]
    if table.off is not None:
        remarks.append(f"  two equal runs: a ratio may be off by {table.off:.0%}")
    remarks += [f"  failed: {name}: {why}" for name, why in table.failures.items()]
    return [*remarks, *(f"  note: {note}" for note in table.notes)]


def _short(found: Spread | None) -> str:
    return f"{found.median:.3g}" if found else ""


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "  " + "  ".join(cells).rstrip()
