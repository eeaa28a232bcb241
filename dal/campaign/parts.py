"""The pool and the learner that a campaign was made with."""

# Imports stand in the functions: where a campaign stands is read without opening its pool or its learner.

from typing import TYPE_CHECKING

from dal.campaign.directory import TOML
from dal.campaign.objects import digest_of
from dal.campaign.store import CampaignStore
from dal.errors import CampaignMismatch, PoolNotFound
from dal.places import place_of

if TYPE_CHECKING:
    from dal.learners.learner import Learner
    from dal.pool import Pool

SAVED_LEARNER = "saved"
"""The learner's name in the settings where an estimator object was passed; it is saved with the campaign."""
_SWITCHED = f"{SAVED_LEARNER}-"
"""Before the digest, in the name of a learner that was passed as an object to switch to."""


FINETUNING = "finetune.json"
"""What a fine-tuning froze, until the campaign has moved to its pool."""


def pool_of(campaign: CampaignStore) -> "Pool":
    """Open the campaign's pool.

    Raises
    ------
    CampaignMismatch
        If another pool lies where it was: labels would land on the wrong records.
    PoolNotFound
        If there is no pool, as where it was moved.
    """
    from dal.pool import Pool

    place = place_of(campaign.settings.pool, beside=campaign.directory)
    try:
        pool = Pool.open(place, missing_chunks=campaign.settings.missing_chunks)
    except PoolNotFound as error:
        raise PoolNotFound(
            f"no pool at {place}, where {campaign.directory} has it; move it back, or write its new path as `pool` into"
            f" {campaign.directory / TOML}"
        ) from error
    if pool.fingerprint != campaign.pool_fingerprint:
        raise other_pool(campaign)
    return pool


def other_pool(campaign: CampaignStore) -> CampaignMismatch:
    """Return the error that another pool lies where the campaign's pool was."""
    remedy = "Restore that pool, or make a new campaign"
    if (campaign.directory / FINETUNING).exists():
        remedy = "It was moving to another pool: run dal finetune again"
    return CampaignMismatch(
        f"{campaign.directory} was made for another pool than the one that {campaign.settings.pool} holds now."
        f" {remedy}."
    )


def save_learner(campaign: CampaignStore, learner: "Learner") -> str:
    """Save a learner that was passed as an object beside the campaign, and return its name."""
    data = learner.dumps()
    name = f"{_SWITCHED}{digest_of(data)[:12]}"
    campaign.objects.write(_file_of(name), data)
    return name


def _file_of(name: str) -> str:
    return f"learner-{name.removeprefix(_SWITCHED)}.skops"


def learner_of(campaign: CampaignStore, name: str | None = None) -> "Learner":
    """Return the learner of a name, such as a round froze it; by default the one that the campaign uses.

    Raises
    ------
    CampaignError
        If it was passed as an object and its file is gone.
    """
    from dal.learners.learner import Learner

    settings, name = campaign.settings, name or campaign.learner
    if name == SAVED_LEARNER or name.startswith(_SWITCHED):
        data = campaign.load_learner() if name == SAVED_LEARNER else campaign.load_learner(_file_of(name))
        return Learner.loads(data, settings.classes, trusted=settings.trusted)
    return Learner.named(name, settings.classes, random_state=settings.random_state, trusted=settings.trusted)
