"""The state of a campaign in numbers that a monitoring system reads every few seconds."""

import numpy as np
from sqlalchemy import func, select

from dal.campaign.activity import Activity
from dal.campaign.leases import holds
from dal.campaign.schema import answers, leases
from dal.campaign.view import View, pauses
from dal.metrics import Metric, counter, gauge

STEPS = ("none", "frozen", "fitted", "scanned", "open", "closed")


def metrics_of(view: View) -> list[Metric]:
    """Read the state of a campaign; as cheap as a look of an open page."""
    campaign, position = view.campaign, view.position()
    past = campaign.rounds.all()
    with campaign.database.reading() as connection:
        given = connection.scalar(select(func.count()).select_from(answers)) or 0
        now = campaign.database.now(connection)
        held = connection.scalar(select(func.count()).select_from(leases).where(holds(now))) or 0
    classes = campaign.settings.classes
    labels = np.bincount(view.labels().codes, minlength=len(classes)).tolist()
    steps = {step: float(step == position.step) for step in STEPS}
    size = campaign.rounds.batch_size(position.round) if position.step == "open" else 0
    found = [
        gauge("dal_round", "Number of the newest round.", position.round),
        Metric("dal_round_step", "gauge", "1 for the step that the newest round is at.", steps, "step"),
        Metric("dal_labels", "gauge", "Records with a label.", dict(zip(classes, labels, strict=True)), "class"),
        counter("dal_answers_total", "Answers ever given, corrections included.", given),
        gauge("dal_batch_records", "Records of the open batch.", size),
        gauge("dal_batch_pending", "Records of the open batch that wait for answers.", position.pending),
        gauge("dal_leases", "Records that people hold now.", held),
        gauge("dal_people", "People who hold records now.", Activity(campaign).active()),
    ]
    if paused := pauses(past):
        last = paused[-1]
        parts = {name: getattr(last, name) for name in ("idle", "train", "score", "select")}
        found.append(
            Metric("dal_pause_seconds", "gauge", "The last pause between two batches, by its use.", parts, "part")
        )
    scanned = [each.summary for each in past if each.summary]
    if scanned and (seconds := scanned[-1].get("seconds")):
        rows = scanned[-1]["rows"]
        found += [
            gauge("dal_last_scan_rows", "Rows of the last finished scan.", rows),
            gauge("dal_last_scan_seconds", "Seconds that it took.", seconds),
        ]
    return found
