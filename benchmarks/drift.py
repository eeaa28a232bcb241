"""Change and haste of annotators: how often they are seen, and how often others are named, by simulation."""

import click
import numpy as np

from dal.evidence.quality import courses

CLASSES = 4


def answers(
    seed: int, n: int, people: int, overlap: int, right: np.ndarray, late: float | None, harder: float
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Draw `n` answers of each person in the order of time; from the middle on, person 0 is right in a share `late`."""
    rng = np.random.default_rng(seed)
    records = n * people // overlap
    who = np.stack([rng.permutation(people)[:overlap] for _ in range(records)])
    share = right[who] - harder * (np.arange(records) / records)[:, None]
    if late is not None:
        share = np.where((np.arange(records) >= records // 2)[:, None] & (who == 0), late, share)
    truth = rng.integers(0, CLASSES, records)[:, None]
    wrong = (truth + rng.integers(1, CLASSES, who.shape)) % CLASSES
    codes = np.where(rng.random(who.shape) < share, truth, wrong)
    return np.repeat(np.arange(records), overlap), [str(each) for each in who.ravel()], codes.ravel()


def named(rows: np.ndarray, who: list[str], codes: np.ndarray) -> set[str]:
    """Return who is said to have changed."""
    unknown = np.full(len(rows), np.nan)
    return {each.name for each in courses(rows, who, codes, {}, np.arange(len(rows)), unknown) if each.change}


def hasty(seed: int, n: int, fast: float | None) -> bool:
    """Return whether one who answers gold records is named hasty; without `fast`, practice meets harder records."""
    rng = np.random.default_rng(seed)
    seconds, share = rng.lognormal(1, 0.5, n), np.full(n, 0.95)
    if fast is None:
        seconds, share = seconds * np.linspace(2, 1, n), np.linspace(0.97, 0.72, n)
    else:
        share[seconds < np.quantile(seconds, 1 / 3)] = fast
    rows, codes = np.arange(n), (rng.random(n) < share).astype(np.int64)
    return courses(rows, ["0"] * n, codes, dict.fromkeys(rows.tolist(), 1), rows, seconds)[0].hasty


@click.command("drift")
@click.option("--seeds", default=200, show_default=True, help="Campaigns of each kind.")
@click.option("--looks", default=10, show_default=True, help="Looks at a campaign where nobody changes.")
def command(seeds: int, looks: int) -> None:
    """Measure false alarms and power of the tests for a change and for haste of an annotator."""
    for told, right, harder in (
        ("five of 60 %", [0.6] * 5, 0.0),
        ("five of 75 %", [0.75] * 5, 0.0),
        ("five of 95 %", [0.95] * 5, 0.0),
        ("60, 75, 85, 95 %", [0.6, 0.75, 0.85, 0.95], 0.0),
        ("five of 90 %, records ever harder, to 60 %", [0.9] * 5, 0.3),
    ):
        ever = 0
        for seed in range(seeds):
            rows, who, codes = answers(seed, 400, len(right), 2, np.array(right), None, harder)
            ends = np.linspace(len(rows) / looks, len(rows), looks).astype(int)
            ever += any(named(rows[:n], who[:n], codes[:n]) for n in ends)
        print(f"steady, {told}: somebody is named in {ever} of {seeds} campaigns of 400 answers each", flush=True)
    for people, overlap in ((5, 2), (3, 3)):
        for n in (200, 400, 800):
            for late in (0.8, 0.7, 0.6):
                found = [
                    named(*answers(seed, n, people, overlap, np.full(people, 0.9), late, 0.0)) for seed in range(seeds)
                ]
                seen, other = sum("0" in each for each in found), sum(bool(each - {"0"}) for each in found)
                who_answer = f"{people} people of 90 %, overlap {overlap}, {n} answers each"
                print(
                    f"{who_answer}, one at {late:.0%} from half-way on: named in {seen} of {seeds}, others in {other}",
                    flush=True,
                )
    for n in (200, 400, 800):
        for told, fast in (
            ("80 % of the fast third, 95 % else", 0.8),
            ("70 %, 95 % else", 0.7),
            ("60 %, 95 % else", 0.6),
            ("97 %, and ever less to 72 % while the pace doubles", None),
        ):
            found_hasty = sum(hasty(seed, n, fast) for seed in range(seeds))
            print(f"one right in {told}, {n} answers: hasty in {found_hasty} of {seeds}", flush=True)
