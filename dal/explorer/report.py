"""A campaign, finished or running, as the explorer shows it: one replay, with settings and measurements."""

from collections.abc import Sequence
from typing import Any

from dal.campaign import CampaignStore
from dal.campaign.activity import Work
from dal.campaign.choice import Choice
from dal.campaign.parts import pool_of
from dal.campaign.quality import Quality
from dal.campaign.view import Status, View, status
from dal.classes import listed
from dal.evidence.agreement import Agreement
from dal.evidence.bias import Share
from dal.evidence.quality import Course
from dal.evidence.ruler import class_shares, wilson
from dal.explorer.run import run_of_campaign
from dal.explorer.view import view_of_run
from dal.loop.bias import Biases
from dal.map import PoolMap

FEWEST_FOR_SHARES = 30
"""Fewest explore answers for which shares of the pool are drawn: bars cannot show wider intervals."""
_LONGEST_BAR = 8


def view_of_campaign(campaign: CampaignStore, pool_map: PoolMap | None) -> dict[str, Any]:
    """Return the content of a campaign's report.

    Parameters
    ----------
    campaign : Campaign
        With at least one batch.
    pool_map : PoolMap or None
        The map of its pool.

    Returns
    -------
    dict
        As from :func:`dal.explorer.view_of_run`, with tables of the campaign.
    """
    run = run_of_campaign(campaign, pool_map)
    view = view_of_run(run, pool_of(campaign))
    now = status(campaign)
    return {
        **view,
        "shares": _shares(campaign),
        "estimated": True,
        "tables": _tables(campaign, now),
        "lead": _lead(campaign, now),
    }


def _lead(campaign: CampaignStore, now: Status) -> str:
    if now.status != "closed":
        state = f"live: round {now.round} is {now.status}, {now.pending:,} waiting"
    else:
        reasons = [each.reason for each in now.verdicts if each.stop]
        state = (
            f"ended: {', '.join(reasons)}" if reasons else f"live: round {now.round} is closed, the next one not begun"
        )
    return f"{campaign.n_rows:,} records · {now.labels:,} labelled of {now.asked:,} asked · {state}"


def _shares(campaign: CampaignStore) -> list[float] | None:
    """Estimate the shares of the classes in the pool from the explore answers, whose records were drawn at random."""
    counts = View(campaign).explored()
    if sum(counts) < FEWEST_FOR_SHARES:
        return None
    shares = [estimate.value for estimate in class_shares(counts)]
    return [share for share in shares if share is not None] or None


def _tables(campaign: CampaignStore, now: Status) -> list[dict[str, Any]]:
    settings = campaign.settings
    tables = [
        {
            "title": "Stopping criteria",
            "header": ["criterion", "now", "why"],
            "rows": [[each.criterion, "STOP" if each.stop else "go on", each.reason] for each in now.verdicts],
        },
        *_bias(campaign),
        {
            "title": "Rounds",
            "header": ["round", "strategy", "asked", "trained on", "accuracy"],
            "rows": _rounds(campaign),
        },
        {
            "title": "Annotators",
            "header": ["annotator", "records", "skipped", "median seconds", "alike with others"],
            "rows": [_annotator(each, now.agreement) for each in now.people],
        },
        {
            "title": "Annotators over time",
            "header": ["annotator", "judged answers", "right, the first ones first", "fastest third", "slowest third"],
            "rows": [_course(each) for each in now.courses if each.windows],
        },
        {
            "title": "Careless people and hard records",
            "header": ["annotator", "records with several answers", "right", "doubt of these records"],
            "rows": [
                [each.name, f"{each.records:,}", f"{each.right:.0%}", f"{each.doubt:.2f}"]
                for each in Quality(campaign).apart
            ],
        },
        {
            "title": "Settings",
            "header": ["setting", "value"],
            "rows": [
                ["pool", settings.pool],
                ["estimator", now.learner],
                ["strategy", settings.strategy],
                ["batch_size", f"{settings.batch_size:,}"],
                ["explore share", f"{settings.explore:.0%}"],
                ["random_state", str(settings.random_state)],
                ["classes", listed(settings.classes, most=None)],
                ["began", campaign.created_at.isoformat(" ", "minutes")],
            ],
        },
        {
            "title": "Switches of the learner",
            "header": ["after round", "labels", "from", "to", "by", "reason"],
            "rows": [
                [str(each.since), f"{each.labels:,}", each.before, each.learner, each.person, each.reason]
                for each in Choice(campaign).switches()
            ],
        },
        {"title": "Warnings", "header": ["the learner warned"], "rows": [[note] for note in now.notes]},
        {
            "title": "Warnings of people",
            "header": ["to be looked into"],
            "rows": [[text] for each in now.courses for text in each.warnings],
        },
    ]
    return [table for table in tables if table["rows"]]


def _bias(campaign: CampaignStore) -> list[dict[str, Any]]:
    """Return the labels beside the pool, by class and by region."""
    found = Biases(View(campaign)).now()
    words = {"title": "What was asked, and the pool", "header": [""], "rows": [[line] for line in found.lines]}
    parts = [("class", "Classes", found.classes if found.labels else ()), ("region", "Regions", found.regions)]
    header = ["labels", "of the labels", "of the pool", "times as frequent", "labels █, pool ░"]
    return [
        words,
        *(
            {"title": f"{title} asked, and of the pool", "header": [what, *header], "rows": _beside(shares)}
            for what, title, shares in parts
        ),
    ]


def _beside(shares: Sequence[Share]) -> list[list[str]]:
    """Return a line for each part, with both of its shares as bars of one scale."""
    largest = max((max(each.share, each.pool.value or 0.0) for each in shares), default=0.0)
    return [
        [
            each.name,
            f"{each.labels:,}",
            f"{each.share:.1%}",
            "unknown"
            if each.pool.value is None
            else f"{each.pool.value:.1%} ({each.pool.low:.1%} to {each.pool.high:.1%})",
            "" if each.factor is None else f"{each.factor:.1f}",
            _bar("█", each.share, largest) + " " + _bar("░", each.pool.value or 0.0, largest),
        ]
        for each in shares
    ]


def _bar(mark: str, share: float, largest: float) -> str:
    return mark * round(_LONGEST_BAR * share / largest) if largest else ""


def _rounds(campaign: CampaignStore) -> list[list[str]]:
    ruled, sizes = (
        {record.number: record for record in View(campaign).history(every_model=True)},
        campaign.rounds.batch_sizes(),
    )
    rows = []
    for each in campaign.rounds.all():
        record = ruled.get(each.number)
        accuracy = "open" if record is None else "no explore answer"
        if record is not None and record.explore_asked:
            low, high = wilson(record.explore_correct, record.explore_asked)
            share = record.explore_correct / record.explore_asked
            accuracy = f"{share:.2f} ({low:.2f} to {high:.2f}) on {record.explore_asked}"
        asked = sizes.get(each.number, 0)
        rows.append([str(each.number), each.strategy, f"{asked:,}", f"{each.labels:,}", accuracy])
    return rows


def _course(each: Course) -> list[str]:
    thirds = ["" if third is None else third.text for third in (each.fast, each.slow)]
    return [each.name, f"{each.judged:,}", ", ".join(f"{share.value:.0%}" for share in each.windows), *thirds]


def _annotator(work: Work, agreed: Agreement) -> list[str]:
    share, together = agreed.with_others(work.name)
    return [
        work.name,
        f"{work.answers:,}",
        f"{work.skipped / work.answers:.0%}",
        "" if work.median_seconds is None else f"{work.median_seconds:.1f}",
        "" if share is None else f"{share:.0%} of {together:,}",
    ]
