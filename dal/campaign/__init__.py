"""The durable state of one labelling effort: settings, rounds, answers, models."""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.campaign.annotators import Account, Annotators
    from dal.campaign.queue import Given, Leased, Outcome, Past, Progress, Queue
    from dal.campaign.schema import (
        RETRACTED,
        SKIPPED,
        Answer,
        AnswerFile,
        Answers,
        Asked,
        Conflict,
        Contradiction,
        Event,
        ImportCounts,
        Imported,
        Round,
        Search,
    )
    from dal.campaign.settings import Labelling, Measuring, Scanning, Settings, Storage
    from dal.campaign.store import CampaignStore
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.campaign.annotators": ("Account", "Annotators"),
            "dal.campaign.queue": ("Given", "Leased", "Outcome", "Past", "Progress", "Queue"),
            "dal.campaign.schema": (
                "RETRACTED",
                "SKIPPED",
                "Answer",
                "AnswerFile",
                "Answers",
                "Asked",
                "Conflict",
                "Contradiction",
                "Event",
                "ImportCounts",
                "Imported",
                "Round",
                "Search",
            ),
            "dal.campaign.settings": ("Labelling", "Measuring", "Scanning", "Settings", "Storage"),
            "dal.campaign.store": ("CampaignStore",),
        },
    )

__all__ = [
    "CampaignStore",
    "Settings",
    "Labelling",
    "Storage",
    "Measuring",
    "Scanning",
    "Round",
    "Search",
    "Asked",
    "Answer",
    "Answers",
    "Event",
    "SKIPPED",
    "RETRACTED",
    "AnswerFile",
    "ImportCounts",
    "Imported",
    "Conflict",
    "Contradiction",
    "Queue",
    "Leased",
    "Given",
    "Outcome",
    "Past",
    "Progress",
    "Annotators",
    "Account",
]
