"""The promises of the default strategy, and whether replays keep them.

On each set the strategy is that which ``dal`` presets for such a pool, with random first labels and no explore share.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.labels.sets import SETS
from benchmarks.labels.statistics import Interval
from benchmarks.labels.table import difference, markdown, thirds

FORMER = "default"
"""The strategy that was the default on embeddings too, before `class_coverage`."""
POINT, SETS_AHEAD = 0.01, 3
MOST_NOISE = 0.16
SHARE = 0.7
"""Of the gap from random to the oracle, in each third."""
THIRDS = ("first", "second", "last")


class Promise(NamedTuple):
    """A promise, judged by the replays.

    Attributes
    ----------
    text : str
    kept : bool or None
        None where no replay tells.
    found : str
    """

    text: str
    kept: bool | None
    found: str


def judged(results: Sequence[Mapping], shares: Mapping[str, Mapping[str, Sequence[Interval]]]) -> list[Promise]:
    """Judge the promises by the entries of all strategies, and by the shares of the gap to the oracle."""
    entries = _of_defaults(results)
    return [
        _never_below_random(entries),
        _never_below_former(entries),
        _ahead_of_former(entries),
        _level_with_margin(entries.get("fashion")),
        _little_noise(entries.get("noisy")),
        _rare_classes(entries.get("kddcup"), results),
        _gap(shares.get("class_coverage", {}).get("pooled")),
    ]


def _of_defaults(results: Sequence[Mapping]) -> dict[str, Mapping]:
    return {each["set"]: each for each in results if each["strategy"] == SETS[each["set"]].default}


def _below(entry: Mapping) -> list[str]:
    """Return the thirds in which a strategy is significantly below random."""
    gains = entry.get("thirds_against_random", ())
    return [third for third, (_, _, high) in zip(THIRDS, gains, strict=False) if high is not None and high < 0]


def _never_below_random(entries: Mapping[str, Mapping]) -> Promise:
    played = {name: _below(each) for name, each in entries.items() if "thirds_against_random" in each}
    broken = [f"{name} ({', '.join(below)})" for name, below in played.items() if below]
    return Promise(
        "in no third of the budget significantly below random",
        not broken if played else None,
        f"below on {', '.join(broken) or 'none'} of {len(played)} sets",
    )


def _changed(entries: Mapping[str, Mapping]) -> Iterator[tuple[str, Mapping]]:
    """Yield the sets whose default is another strategy now, and how it compares with the former one."""
    for name, each in entries.items():
        if FORMER in each["against"]:
            yield name, each["against"][FORMER]


def _never_below_former(entries: Mapping[str, Mapping]) -> Promise:
    played = dict(_changed(entries))
    broken = [
        f"{name} ({100 * each['difference']:+.1f})" for name, each in played.items() if each["verdict"] == "worse"
    ]
    found = f"below on {', '.join(broken) or 'none'} of {len(played)} sets; the same strategy on the others"
    return Promise(f"area never significantly below `{FORMER}`", not broken if played else None, found)


def _ahead_of_former(entries: Mapping[str, Mapping]) -> Promise:
    # The long tails are cut from the same embeddings, and count as no further sets.
    played = {name: each for name, each in _changed(entries) if SETS[name].balanced}
    ahead = [
        f"{name} ({100 * each['difference']:+.1f})"
        for name, each in played.items()
        if each["difference"] >= POINT and each["verdict"] == "better"
    ]
    return Promise(
        f"area at least a point above `{FORMER}` on {SETS_AHEAD} sets of embeddings",
        len(ahead) >= SETS_AHEAD if len(played) >= SETS_AHEAD else None,
        f"on {', '.join(ahead) or 'none'} of {len(played)}",
    )


def _level_with_margin(entry: Mapping | None) -> Promise:
    text = "area not significantly below margin on `fashion`"
    if entry is None or "margin" not in entry["against"]:
        return Promise(text, None, "")
    return Promise(text, entry["against"]["margin"]["verdict"] != "worse", difference(entry, "margin"))


def _little_noise(entry: Mapping | None) -> Promise:
    text = f"at most {100 * MOST_NOISE:.0f} % of the batch in the noise of `noisy`"
    if entry is None or "noise_share" not in entry:
        return Promise(text, None, "")
    return Promise(text, entry["noise_share"] <= MOST_NOISE, f"{100 * entry['noise_share']:.1f} %")


def _rare_classes(entry: Mapping | None, results: Sequence[Mapping]) -> Promise:
    text = "rare classes found on `kddcup` no fewer than by margin"
    margin = [each for each in results if (each["set"], each["strategy"]) == ("kddcup", "margin")]
    if entry is None or not margin or "rare_found" not in entry:
        return Promise(text, None, "")
    ours, theirs = (each["rare_found"][-1] for each in (entry, *margin))
    return Promise(text, ours >= theirs, f"{ours:.1f}, and {theirs:.1f} by margin")


def _gap(pooled: Sequence[Interval] | None) -> Promise:
    text = f"at least {100 * SHARE:.0f} % of the gap to the oracle closed in each third, pooled"
    if pooled is None:
        return Promise(text, None, "")
    values = [each.value for each in pooled if each.value is not None]
    return Promise(text, min(values) >= SHARE, ", ".join(f"{100 * value:.0f} %" for value in values))


def summary_table(results: Sequence[Mapping]) -> str:
    """Lay the default of each set out against its rivals."""
    rows = [
        [
            name,
            each["strategy"],
            str(each["seeds"]),
            f"{100 * each['area']:.1f}",
            difference(each, "random"),
            thirds(each),
            ", ".join(_below(each)) or "none",
            difference(each, FORMER),
            difference(each, "margin"),
        ]
        for name, each in _of_defaults(results).items()
    ]
    headings = ["set", "default", "seeds", "area", "against random", "by third of the budget", "thirds below random"]
    headings += [f"against `{FORMER}`", "against margin"]
    return f"**The default of each set**\n\n{markdown(headings, rows)}" if rows else ""


def promises_table(promises: Sequence[Promise]) -> str:
    """Lay the promises out, with what was found."""
    said = {True: "kept", False: "not kept", None: "not played"}
    rows = [[each.text, said[each.kept], each.found] for each in promises]
    return f"**Promises of the default**\n\n{markdown(['promise', 'kept', 'found'], rows)}"
