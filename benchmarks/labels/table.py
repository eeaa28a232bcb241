"""Results as Markdown."""

from collections.abc import Mapping, Sequence

from benchmarks.labels.published import PUBLISHED
from benchmarks.labels.statistics import Interval


def tables(results: Sequence[Mapping]) -> list[str]:
    """Lay the sets out, one table each, the largest area first."""
    return [_table([each for each in results if each["set"] == name]) for name in _names(results)]


def _table(results: Sequence[Mapping]) -> str:
    name, seeds = results[0]["set"], max(each["seeds"] for each in results)
    has_noise = any("noise_share" in each for each in results)
    has_rare = any("rare_found" in each for each in results)
    headings = [
        "strategy",
        "area",
        "against random",
        "by third of the budget",
        "against margin",
        "wins / ties / losses",
        "labels to random's final",
    ]
    headings += ["of the batch in noise"] * has_noise + ["rare classes found", "their recall"] * has_rare
    rows = []
    for each in sorted(results, key=lambda entry: -entry["area"]):
        row = [
            each["strategy"],
            f"{each['area']:.4f}",
            difference(each, "random"),
            thirds(each),
            difference(each, "margin"),
            _tally(each, "margin"),
            _labels(each),
        ]
        row += [f"{100 * each['noise_share']:.0f} %" if "noise_share" in each else ""] * has_noise
        row += [f"{each[key][-1]:{form}}" if key in each else "" for key, form in _RARE] * has_rare
        rows.append(row)
    return f"**{name}**, {seeds} seeds\n\n{markdown(headings, rows)}"


_RARE = (("rare_found", ".1f"), ("rare_recall", ".3f"))


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out; the first column to the left, the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def safety_table(results: Sequence[Mapping]) -> str:
    """Lay out how strategies compare with random on many sets: one row each, and the sets on which one is below it."""
    strategies = [each for each in dict.fromkeys(entry["strategy"] for entry in results) if each != "random"]
    known = {(entry["set"], entry["strategy"]): entry for entry in results}
    rows, below = [], []
    for name in _names(results):
        base = known[name, "random"]
        row = [f"`{name}`", str(base["seeds"]), f"{100 * base['area']:.1f}"]
        rows.append([*row, *(cell for each in strategies for cell in _safety(known.get((name, each))))])
    for each in strategies:
        entries = [known[name, each] for name in _names(results) if "end_against_random" in known.get((name, each), {})]
        of_area = [entry["set"] for entry in entries if _is_below(entry["against"]["random"]["interval"])]
        of_end = [entry["set"] for entry in entries if _is_below(entry["end_against_random"][1:])]
        of_third = [e["set"] for e in entries if any(_is_below(third[1:]) for third in e["thirds_against_random"])]
        mean = 100 * sum(entry["against"]["random"]["difference"] for entry in entries) / max(len(entries), 1)
        below.append(
            [
                each,
                str(len(entries)),
                f"{mean:+.2f}",
                *(", ".join(part) or "none" for part in (of_area, of_end, of_third)),
            ]
        )
    if not rows:
        return ""
    headings = ["set", "seeds", "random", *(f"{each}{part}" for each in strategies for part in (", area", ", end"))]
    summary = ["strategy", "sets", "mean over random", "below in area", "below at the end", "below in a third"]
    title = "**Points over random**, with 95 % intervals; bold where they leave out nothing"
    return f"{title}\n\n{markdown(headings, rows)}\n\n{markdown(summary, below)}"


def _safety(entry: Mapping | None) -> list[str]:
    if entry is None or "end_against_random" not in entry:
        return ["", ""]
    against = entry["against"]["random"]
    return [_points(against["difference"], *against["interval"]), _points(*entry["end_against_random"])]


def _points(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{100 * value:+.1f}"
    text = f"{100 * value:+.1f} ± {50 * (high - low):.1f}"
    return f"**{text}**" if low > 0 or high < 0 else text


def _is_below(interval: Sequence[float | None]) -> bool:
    return interval[1] is not None and interval[1] < 0


def gap_table(shares: Mapping[str, Mapping[str, Sequence[Interval]]]) -> str:
    """Lay out the shares of the gap to the oracle, one row for each strategy and set."""
    rows = [
        [strategy, name, *(f"{100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]" for value, low, high in by_third)]
        for strategy, by_set in shares.items()
        for name, by_third in by_set.items()
    ]
    headings = ["strategy", "set", *(f"{each} third" for each in ("first", "second", "last"))]
    title = "**Share of the gap from random to the oracle, %**"
    return f"{title}\n\n{markdown(headings, rows)}" if rows else ""


def protocol_table(results: Sequence[Mapping]) -> str:
    """Lay out what became of the published areas."""
    known = {(each["set"], each["strategy"]): each for each in results}
    rows = []
    for name, areas in PUBLISHED.items():
        random, margin = (known.get((f"lu/{name}", strategy)) for strategy in ("random", "margin"))
        if random is None or margin is None or "random" not in margin["against"]:
            continue
        gain = margin["against"]["random"]
        low, high = gain["interval"]
        rows.append(
            [
                name,
                str(margin["seeds"]),
                f"{random['area']:.4f} ({areas.random:.4f})",
                f"{margin['area']:.4f} ({areas.margin:.4f})",
                f"{gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}]",
                f"{areas.margin - areas.random:+.4f}",
            ]
        )
    headings = ["set", "seeds", "random (published)", "margin (published)", "gain [95 %]", "published gain"]
    return markdown(headings, rows) if rows else ""


def _names(results: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(each["set"] for each in results))


def difference(entry: Mapping, rival: str) -> str:
    """Return the difference of the areas from those of a rival as text, with its interval."""
    against = entry["against"].get(rival)
    if against is None:
        return ""
    low, high = against["interval"]
    half = f" ± {(high - low) / 2:.4f}" if low is not None else ""
    return f"{against['difference']:+.4f}{half} {against['verdict']}"


def thirds(entry: Mapping) -> str:
    """Return the differences of the areas from random's by third of the budget as text, with their intervals."""
    if entry["strategy"] == "random" or "thirds_against_random" not in entry:
        return ""
    return ", ".join(
        f"{gain:+.3f}" + (f" ± {(high - low) / 2:.3f}" if low is not None else "")
        for gain, low, high in entry["thirds_against_random"]
    )


def _tally(entry: Mapping, rival: str) -> str:
    against = entry["against"].get(rival)
    return f"{against['wins']} / {against['ties']} / {against['losses']}" if against is not None else ""


def _labels(entry: Mapping) -> str:
    if "labels" not in entry:
        return ""
    value, interval = entry["labels_to_random_final"], entry["labels_to_random_final_interval"]
    most = f"> {entry['labels'][-1]:.0f}"
    shown = [f"{each:.0f}" if each is not None else most for each in (value, *interval)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
