"""Train an encoder on a campaign's labels, encode the records again, and let the campaign move to that pool.

Each step is durable. The labels are frozen first, the weights are a file, the pool is built by whole chunks, and the
move comes last: killed at any instant and run again, it goes on.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dal._files import replacing
from dal.campaign import CampaignStore
from dal.campaign.parts import FINETUNING, learner_of, pool_of
from dal.campaign.view import View
from dal.encoders.named import tunable
from dal.encoders.tuning import Tunable, Tuning, tuned
from dal.errors import CampaignError, DalError, PoolError, SettingsError, SourceError
from dal.loop.learners import records_to_try
from dal.places import Place, place_of
from dal.pool import Pool
from dal.pool.build import Options, build, raw_records
from dal.pool.encoded import RawSource, prepared, taken
from dal.selection.strategy import Strategy

_IDS_AT_ONCE = 2**16
ENCODERS = "encoders"
"""The folder of a campaign that holds the weights of its encoders."""

Progress = Callable[[str, int, int | None], None]


def finetune(
    campaign: CampaignStore,
    source: object,
    path: str | Path,
    encoder: object,
    how: Options,
    tuning: Tuning,
    progress: Progress | None = None,
) -> tuple[CampaignStore, Path]:
    """Train, encode, move; see :meth:`dal.Campaign.finetune`.

    Returns
    -------
    campaign, weights
        The campaign on its new pool, and the file of the encoder's weights.
    """
    trainable = tunable(encoder)
    _refuse_holdout(campaign)
    where = place_of(path)
    asked_for = {"pool": str(where), "encoder": trainable.id, "tuning": asdict(tuning)}
    say = progress or _silent
    if campaign.settings.pool == str(where):  # killed as it moved
        frozen = _frozen(campaign, asked_for)
        weights = _weights_of(campaign, frozen)
    else:
        pool, records = pool_of(campaign), raw_records(source, how)
        if records.n_rows not in (None, pool.n_rows):
            raise SourceError(
                f"`source` must hold the {pool.n_rows:,} records of {pool.path}, got {records.n_rows:,}; pass all that"
                " the pool was built of, in one source"
            )
        frozen = _frozen(campaign, asked_for)
        weights = _weights_of(campaign, frozen)
        if not weights.exists():
            _train(campaign, records, trainable, tuning, frozen["last_answer"], weights, say)
        changed = trainable.with_weights(weights.read_bytes())
        built = _built(source, where, replace(how, encoder=changed), changed.id, say)
        _refuse_other_records(pool, built)
        settings = campaign.settings
        learner_of(campaign).check(
            built.n_features,
            Strategy.named(settings.strategy, settings.explore).scorer,
            records=records_to_try(built),
            weighted=settings.labelling.vote == "dawid_skene",
        )
    moved = campaign.move(str(where), Pool.open(where).fingerprint)
    (campaign.directory / FINETUNING).unlink(missing_ok=True)
    return moved, weights


def _refuse_holdout(campaign: CampaignStore) -> None:
    if campaign.settings.measuring.holdout:
        raise SettingsError(
            "`holdout` must be left out of the settings for a fine-tuning, got"
            f" {campaign.settings.measuring.holdout!r}, whose features are those of the encoder before; remove it"
        )


def _frozen(campaign: CampaignStore, asked_for: dict[str, Any]) -> dict[str, Any]:
    """Return what a fine-tuning is computed from: as it was frozen, where one was interrupted."""
    file, pool = campaign.directory / FINETUNING, asked_for["pool"]
    if not file.exists():
        if campaign.settings.pool == pool:
            raise CampaignError(f"{campaign.directory} is on {pool} already: name another place for the next pool")
        if len(known := np.unique(View(campaign).labels().codes)) < 2:
            raise SettingsError(f"`labels` must be of two classes at least, got {len(known)}; label more records first")
        fresh = {**asked_for, "last_answer": campaign.answers.last_id()}
        with replacing(file) as part:
            part.write(json.dumps(fresh).encode())
    try:
        frozen: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise CampaignError(f"{file} is damaged: remove it, and run again") from error
    if {name: frozen.get(name) for name in asked_for} != asked_for:
        raise CampaignError(
            f"{file} is of another fine-tuning that was interrupted, for {frozen.get('pool')}: run that one again, or"
            " remove the file"
        )
    return frozen


def _weights_of(campaign: CampaignStore, frozen: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()
    return campaign.directory / ENCODERS / f"{digest[:16]}.safetensors"


def _train(
    campaign: CampaignStore,
    records: RawSource,
    encoder: Tunable,
    tuning: Tuning,
    last_answer: int,
    weights: Path,
    say: Progress,
) -> None:
    labels = View(campaign).labels(last_answer)
    order = np.argsort(labels.rows)
    raw = taken(records, labels.rows[order])

    def some(positions: Any) -> tuple[Any, list[Any]]:  # noqa: ANN401 - arrays of positions
        kept, values = prepared(encoder, records.kind, [raw[at] for at in positions.tolist()])
        return positions[kept], values

    try:
        found = tuned(encoder, some, labels.codes[order], tuning, lambda done, of: say("epochs", done, of))
    except DalError:  # with other settings it may do
        (campaign.directory / FINETUNING).unlink()
        raise
    weights.parent.mkdir(exist_ok=True)
    with replacing(weights) as part:
        part.write(found)


def _built(source: object, where: Place, how: Options, encoder_id: str, say: Progress) -> Pool:
    """Build the pool, or go on with it; return the one that is whole already."""
    try:
        there = Pool.open(where)
    except PoolError:
        there = None
    if there is not None and there.encoder == encoder_id:
        return there
    return build(source, where, how, dtype=None, overwrite=False, progress=lambda done, of: say("rows", done, of))


def _refuse_other_records(pool: Pool, built: Pool) -> None:
    """Raise an error unless both pools hold the same record ids in the same rows."""
    if built.n_rows != pool.n_rows:
        raise SourceError(f"`source` must hold the {pool.n_rows:,} records of {pool.path}, got {built.n_rows:,}")
    for start in range(0, pool.n_rows, _IDS_AT_ONCE):
        rows = np.arange(start, min(start + _IDS_AT_ONCE, pool.n_rows))
        before, after = (np.asarray(each.record_ids(rows), dtype=object) for each in (pool, built))
        if (before != after).any():
            at = int(np.argmax(before != after))
            raise SourceError(
                f"`source` must hold the records of {pool.path} in their order, got {after[at]!r} for {before[at]!r} in"
                f" row {start + at:,}"
            )


def _silent(what: str, done: int, of: int | None) -> None:
    """Show nothing."""
