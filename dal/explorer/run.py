"""Runs: replays for the explorer, and the folder that keeps them: ``run.json`` and arrays.

A run folder holds

``run.json``
    ``format`` ("dal-run"), ``version`` (1), ``title``, ``classes``, ``shares`` (of the classes in the pool, or null),
    ``notes``, ``measured`` (what accuracy is measured on), ``settings`` (what defines the replays; a folder made with
    others is refused), and ``replays``: the strategy and seed of each, in order; empty until all are there.
``map.npz``
    The map of the pool, see :class:`dal.map.PoolMap`; it may be missing.
``replays/<strategy>-<seed>.npz``
    One replay: ``labels`` (int64) and ``accuracy`` (float64), a value for each round; ``rows`` (int64), ``scores``
    (float32, NaN where there is none) and ``predicted`` (int64, -1 where there is none), round after round, cut by
    ``sizes`` (int64); ``views`` (uint8, rounds x watched x 2), see :class:`dal.replay.Replay`: empty if nothing was
    watched.
``answers.npz``
    ``rows`` (int64, ascending) and ``codes`` (int64): the class of every record that was asked or stands on the map.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from dal._files import read_npz, replacing, write_npz
from dal.campaign import CampaignStore
from dal.campaign.parts import pool_of
from dal.campaign.view import View
from dal.errors import CampaignMismatch, SettingsError
from dal.evidence.ruler import wilson
from dal.learners.models import Model
from dal.map import PoolMap
from dal.pool import Pool
from dal.replay import Comparison, Replay, view_of

FORMAT, VERSION = "dal-run", 1
GRID = 72
"""Points along each axis at which the classes of a pool of two features are predicted."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """Replays on one pool, with everything needed to draw them.

    Attributes
    ----------
    title : str
    classes : tuple of str
    replays : tuple of Replay
    rows, codes : ndarray of int64, shape (n,)
        Known classes of the records that were asked or are on the map. Rows ascend.
    pool_map : PoolMap or None
    shares : tuple of float or None
        Share of each class in the pool, where it is known.
    notes : tuple of str
        Notes for the reader, such as where the test records came from.
    measured : str
        The records that accuracy is measured on.
    intervals : tuple of (low, high)
        Interval of each point of the curve, for a single replay that has them; otherwise intervals are over the seeds.
    """

    title: str
    classes: tuple[str, ...]
    replays: tuple[Replay, ...]
    rows: Rows
    codes: Rows
    pool_map: PoolMap | None
    shares: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    measured: str = "test records"
    intervals: tuple[tuple[float, float], ...] = ()

    @property
    def comparison(self) -> Comparison:
        """The replays as a comparison."""
        return Comparison(self.replays)

    def codes_of(self, rows: Rows) -> Rows:
        """Return the class code of each row; -1 where it is not known."""
        if not len(self.rows):
            return np.full(len(rows), -1, dtype=np.int64)
        position = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[position] == rows, self.codes[position], -1)


def watched_by(pool: Pool, pool_map: PoolMap) -> npt.NDArray[np.float32]:
    """Return the records whose predictions are drawn: the map's sample, or a grid for a pool of two features.

    Returns
    -------
    ndarray of float32, shape (n, n_features)
    """
    if pool.n_features != 2:
        return pool.take(pool_map.sample)
    left, right, bottom, top = pool_map.extent
    x = left + (np.arange(GRID) + 0.5) / GRID * (right - left)
    y = bottom + (np.arange(GRID) + 0.5) / GRID * (top - bottom)
    return np.stack([np.tile(x, GRID), np.repeat(y, GRID)], axis=1).astype(np.float32)


class RunFolder:
    """A run on disk; each replay is added when it ends, so that an interrupted run can be resumed.

    Parameters
    ----------
    path : path
        Empty, missing, or a run folder with the same settings.
    settings : mapping
        Settings that define the replays, as JSON values.

    Raises
    ------
    SettingsError
        The folder holds a run with other settings, or something else.
    CampaignMismatch
        A newer dal wrote it.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, object]) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        there = _described(self.path)
        if there is None and self.path.exists() and any(self.path.iterdir()):
            raise SettingsError(f"{self.path} must be an empty folder or a run, got other files; name another folder")
        if there is not None and there["settings"] != self.settings:
            differing = [name for name in self.settings if there["settings"].get(name) != self.settings[name]]
            raise SettingsError(
                f"{self.path} must hold replays with the same settings, got another "
                f"{', '.join(differing) or 'setting'}; name"
                " another folder, or delete it"
            )
        (self.path / "replays").mkdir(parents=True, exist_ok=True)
        self._write({"title": "", "classes": [], "notes": [], "replays": []} if there is None else there)

    def _write(self, description: Mapping[str, Any]) -> None:
        content = {**description, "format": FORMAT, "version": VERSION, "settings": self.settings}
        with replacing(self.path / "run.json") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())

    def replays(self) -> list[Replay]:
        """Read the finished replays."""
        return [_read_replay(path) for path in sorted((self.path / "replays").glob("*.npz"))]

    def add(self, played: Replay) -> None:
        """Store a finished replay."""
        sizes = np.array([len(rows) for rows in played.batches], dtype=np.int64)
        arrays = {
            "strategy": np.array(played.strategy),
            "seed": np.array(played.seed),
            "labels": np.array(played.labels, dtype=np.int64),
            "accuracy": np.array(played.accuracy),
            "sizes": sizes,
            "rows": _joined(played.batches, np.int64),
            "scores": _joined(played.scores, np.float32),
            "predicted": _joined(played.predicted, np.int64),
            "views": np.array(played.views, dtype=np.uint8),
        }
        write_npz(self.path / "replays" / _file_of(played.strategy, played.seed), arrays, compressed=True)

    def finish(self, run: Run) -> None:
        """Write the data that all replays share, and mark the run as finished."""
        if run.pool_map is not None:
            run.pool_map.save(self.path / "map.npz")
        write_npz(self.path / "answers.npz", {"rows": run.rows, "codes": run.codes}, compressed=True)
        self._write(
            {
                "title": run.title,
                "classes": list(run.classes),
                "notes": list(run.notes),
                "measured": run.measured,
                "shares": run.shares,
                "replays": [[played.strategy, played.seed] for played in run.replays],
            }
        )

    @staticmethod
    def read(path: str | Path) -> Run:
        """Read a finished run.

        Parameters
        ----------
        path : path

        Returns
        -------
        Run

        Raises
        ------
        SettingsError
            There is no run, or it was interrupted.
        CampaignMismatch
            A newer dal wrote it.
        """
        path = Path(path)
        there = _described(path)
        if there is None:
            raise SettingsError(f"{path} must be a run folder, got no run.json in it; check the path")
        if not there["replays"]:
            raise SettingsError(
                f"{path} must hold a finished run, got an interrupted one; run the same command to resume it"
            )
        answers = read_npz(path / "answers.npz")
        return Run(
            title=there["title"],
            classes=tuple(there["classes"]),
            replays=tuple(_read_replay(path / "replays" / _file_of(name, seed)) for name, seed in there["replays"]),
            rows=answers["rows"],
            codes=answers["codes"],
            pool_map=PoolMap.load(path / "map.npz"),
            shares=None if there.get("shares") is None else tuple(there["shares"]),
            notes=tuple(there["notes"]),
            measured=there["measured"],
        )


def _file_of(strategy: str, seed: int) -> str:
    # A parameter of a user's own part may hold anything, also a slash.
    return f"{quote(strategy, safe=' =,:()')}-{seed}.npz"


def _described(path: Path) -> dict[str, Any] | None:
    try:
        described = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SettingsError(
            f"{path / 'run.json'} must be a run, got {error}; name another folder, or delete it"
        ) from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise SettingsError(f"{path / 'run.json'} must be a run of dal, got another file; name another folder")
    if described["version"] > VERSION:
        raise CampaignMismatch(
            f"{path} must have a run format up to {VERSION}, got {described['version']}; use a newer dal"
        )
    return described


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def _read_replay(path: Path) -> Replay:
    stored = read_npz(path)
    ends = np.cumsum(stored["sizes"])[:-1]
    return Replay(
        strategy=str(stored["strategy"]),
        seed=int(stored["seed"]),
        labels=tuple(stored["labels"].tolist()),
        accuracy=tuple(stored["accuracy"].tolist()),
        batches=tuple(np.split(stored["rows"], ends)),
        scores=tuple(np.split(stored["scores"], ends)),
        predicted=tuple(np.split(stored["predicted"], ends)),
        views=tuple(stored["views"]),
    )


def run_of_campaign(campaign: CampaignStore, pool_map: PoolMap | None) -> Run:
    """Return a campaign, finished or running, as a run of one replay.

    Its accuracy is that of the explore answers of each single round, NaN in rounds without any. It is measured on the
    model that chose the round's batch, so the labels of the curve are those that this model had learned from.

    Parameters
    ----------
    campaign : Campaign
        With at least one batch.
    pool_map : PoolMap or None
        Without it the run has no map and no predictions to draw.

    Raises
    ------
    SettingsError
        No batch was chosen yet.
    """
    rounds = [each for each in campaign.rounds.all() if each.status in ("open", "closed")]
    if not rounds:
        raise SettingsError(f"{campaign.directory} must have a batch to show, got none; run dal next first")
    settings = campaign.settings
    known = campaign.answers.labels()
    ruled = {record.number: record for record in View(campaign).history(every_model=True)}
    watched = None if pool_map is None else watched_by(pool_of(campaign), pool_map)
    played = Replay(settings.strategy, settings.random_state, (), (), ())
    views, intervals = [], []
    for each in rounds:
        asked = campaign.rounds.batch(each.number)
        batch = np.array([record.row for record in asked], dtype=np.int64)
        record = ruled.get(each.number)
        correct, explored = (record.explore_correct, record.explore_asked) if record else (0, 0)
        intervals.append(wilson(correct, explored))
        played = replace(
            played,
            labels=(*played.labels, each.labels),
            accuracy=(*played.accuracy, correct / explored if explored else float("nan")),
            batches=(*played.batches, batch),
            scores=(*played.scores, np.array([np.nan if r.score is None else r.score for r in asked], np.float32)),
            predicted=(*played.predicted, np.array([-1 if r.predicted is None else r.predicted for r in asked])),
        )
        if watched is not None:
            here = each.model is not None and each.pool_fingerprint == campaign.pool_fingerprint
            data = campaign.rounds.load_model(each.model) if each.model is not None and here else None
            views.append(view_of(None if data is None else Model.loads(data, settings.trusted), watched))
    # A view belongs to the point of the curve whose labels its model has learned, which is that of the round before.
    played = replace(played, views=tuple(views[1:]) + ((views[-1],) if views else ()))
    return Run(
        title=f"Campaign {campaign.directory.name}",
        classes=settings.classes,
        replays=(played,),
        rows=known.rows,
        codes=known.codes,
        pool_map=pool_map,
        notes=(
            "Accuracy is that of the model that chose the batch, on those of its records that were drawn uniformly.",
        ),
        measured="explore answers",
        intervals=tuple(intervals),
    )
