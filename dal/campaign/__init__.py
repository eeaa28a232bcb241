"""The durable state of one labelling effort: settings, rounds, answers, models."""

from dal.campaign.schema import (
    SKIPPED,
    Answer,
    AnswerFile,
    Answers,
    Asked,
    Conflict,
    Contradiction,
    ImportCounts,
    Imported,
    Round,
)
from dal.campaign.settings import Settings
from dal.campaign.store import Campaign

__all__ = [
    "Campaign",
    "Settings",
    "Round",
    "Asked",
    "Answer",
    "Answers",
    "SKIPPED",
    "AnswerFile",
    "ImportCounts",
    "Imported",
    "Conflict",
    "Contradiction",
]
