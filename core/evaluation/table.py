"""Values of many pairs, runs and variants as statistics, and these as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .pairs import Values

DIRECTION = {"mse": "lower", "psnr": "higher", "ssim": "higher", "lpips": "lower", "error": "lower", "fid": "lower",
             "rate": "higher"}
UNITS = {"psnr": "dB", "error": "px"}


class Statistic(NamedTuple):
    """Summary of one metric.

    mean: over the finite values, None if there are none.
    std: sample standard deviation (n - 1), None under two finite values.
    count: finite values.  undefined: pairs without a value, such as an empty area.
    infinite: values left out of the mean because they are infinite: PSNR of equal pictures.
    """

    mean: float | None
    std: float | None
    count: int
    undefined: int
    infinite: int


def combine(batches: Iterable[Values]) -> Values:
    """Join the values of several batches. A metric that a batch lacks is undefined for all of its pairs."""
    joined: Values = {}
    total = 0
    for batch in batches:
        size = max((len(v) for v in batch.values()), default=0)
        for name in list(joined) + [n for n in batch if n not in joined]:
            joined.setdefault(name, [None] * total).extend(batch.get(name, [None] * size))
        total += size
    return joined


def summarise(values: Sequence[float | None]) -> Statistic:
    """Statistic of one metric's values. NaN counts as undefined."""
    known = [v for v in values if v is not None and not math.isnan(v)]
    finite = [v for v in known if math.isfinite(v)]
    return Statistic(statistics.fmean(finite) if finite else None, statistics.stdev(finite) if len(finite) > 1 else None,
                     len(finite), len(values) - len(known), len(known) - len(finite))


def aggregate(values: Values) -> dict[str, Statistic]:
    """Statistics over pairs; every pair counts the same, however large its area."""
    return {name: summarise(numbers) for name, numbers in values.items()}


def across(runs: Sequence[Mapping[str, Statistic]]) -> dict[str, Statistic]:
    """Statistics over runs (seeds) of the runs' means. std is the spread between runs, not between pairs."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: summarise([run[name].mean if name in run else None for run in runs]) for name in names}


def split_source(summary: Mapping[str, Statistic]) -> dict[str, dict[str, Statistic]]:
    """The columns of a report: the edit's metrics, and the unedited source's under the same names if there are any."""
    edited = {name: s for name, s in summary.items() if not name.startswith("source_")}
    source = {name.removeprefix("source_"): s for name, s in summary.items() if name.startswith("source_")}
    return {"edited": edited, **({"unedited source": source} if source else {})}


def markdown(columns: Mapping[str, Mapping[str, Statistic]]) -> str:
    """A table with a row for each metric and a column for each variant: mean, and +- standard deviation.

    In brackets how many values the mean is of, where that is not all of them.
    """
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = ["| metric | better | " + " | ".join(_cell(c) for c in columns) + " |",
             "| --- | --- |" + " --- |" * len(columns)]
    for name in names:
        kind = name.rsplit("_", 1)[-1]
        label = name.replace("_", " ") + (f" ({UNITS[kind]})" if kind in UNITS else "")
        cells = [_shown(column[name]) if name in column else "" for column in columns.values()]
        lines.append(f"| {_cell(label)} | {DIRECTION.get(kind, '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _shown(s: Statistic) -> str:
    if s.mean is None:
        text = "infinite" if s.infinite else "-"
    else:
        text = f"{s.mean:.4g}" + (f" ± {s.std:.2g}" if s.std is not None else "")
    left_out = [f"{s.undefined} undefined"] * (s.undefined > 0) + [f"{s.infinite} infinite"] * (s.infinite > 0)
    return text + (f" (of {s.count}; {', '.join(left_out)})" if left_out else "")


def to_csv(names: Sequence[str], values: Values) -> str:
    """A line for each pair; empty where a value is undefined, `inf` where it is infinite."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", *values])
    for i, name in enumerate(names):
        writer.writerow([name, *("" if v[i] is None else repr(v[i]) for v in values.values())])
    return out.getvalue()


def to_json(content: Mapping[str, Any]) -> str:
    """Strict JSON: undefined is null, infinite is the string "inf", a Statistic is an object."""
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Statistic):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
