"""The durable state of one labelling effort: settings, rounds, answers, models."""

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
)
from dal.campaign.settings import Settings
from dal.campaign.store import CampaignStore

__all__ = [
    "CampaignStore",
    "Settings",
    "Round",
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
