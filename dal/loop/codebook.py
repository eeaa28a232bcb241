"""The codebook that tells the cells of a campaign's pool apart: made once, and committed by every scan's summary."""

import logging

from dal._files import as_npz, read_npz
from dal.campaign import CampaignStore
from dal.campaign.objects import digest_of
from dal.errors import CampaignError
from dal.pool import Pool
from dal.scan import sample_codebook
from dal.selection.codebook import Codebook
from dal.selection.strategy import Strategy

_log = logging.getLogger(__name__)


def codebook_of(campaign: CampaignStore, pool: Pool) -> tuple[Codebook, str]:
    """Return the campaign's codebook and its file's digest: the newest scan's, or, before the first, a new one."""
    summaries = [each.summary or {} for each in campaign.rounds.all() if each.pool_fingerprint == pool.fingerprint]
    committed = next((summary["codebook"] for summary in reversed(summaries) if "codebook" in summary), None)
    if committed is not None:
        try:
            data = campaign.objects.read(_name(committed), committed)
        except CampaignError as error:
            _log.warning("%s. It is made again from the pool.", error)
        else:
            return _loaded(data), committed
    # From the pool as it was when the campaign began: made again it is the same, whatever was appended since.
    settings = campaign.settings
    cells = Strategy.named(settings.strategy, settings.explore).n_cells(settings.batch_size, campaign.n_rows)
    codebook = sample_codebook(pool.head(campaign.n_rows), cells, settings.random_state)
    data = as_npz(mean=codebook.mean, scale=codebook.scale, axes=codebook.axes, centers=codebook.centers)
    digest = digest_of(data)
    campaign.objects.write(_name(digest), data)
    return codebook, digest


def _name(digest: str) -> str:
    return f"codebook-{digest[:16]}.npz"


def _loaded(data: bytes) -> Codebook:
    stored = read_npz(data, "codebook.npz")
    return Codebook(stored["mean"], stored["scale"], stored["axes"], stored["centers"])
