"""Pages: serve them, and what a manager does there or here: pause, resume, close, stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dal.cli.options import system_user
from dal.cli.terminal import say

if TYPE_CHECKING:
    from dal.campaign.control import Act


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others take annotators.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--user", help="Who labels, where there are no annotators yet. Default: your user name.")
@click.option("--show-suggestions", is_flag=True, help="Show what the model predicts; people then tend to agree.")
@click.option("--tls-cert", type=click.Path(exists=True, path_type=Path), help="Certificate, PEM.")
@click.option("--tls-key", type=click.Path(exists=True, path_type=Path), help="Its key, PEM.")
@click.option("--trust-proxy", metavar="ADDRESS", help="Believe the X-Forwarded headers of the proxy at this address.")
def serve(
    directory: Path,
    host: str,
    port: int,
    user: str | None,
    show_suggestions: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    trust_proxy: str | None,
) -> None:
    """Serve the pages of the campaign in DIRECTORY: labelling, and the campaign itself.

    It only serves: batches are prepared by dal next or dal run, in another process. Killed and started again, it loses
    nothing.
    """
    from dal.campaign import CampaignStore
    from dal.web import Listening, Options, make_server

    campaign = CampaignStore.open(directory)
    listening = Listening(host, port, tls_cert, tls_key, trust_proxy)
    with make_server(campaign, listening, Options(user or system_user(), show_suggestions)) as server:
        say(f"Labelling: {server.url}")
        say(f"The campaign: {server.url}campaign")
        if not listening.private and tls_cert is None and trust_proxy is None:
            say("Without TLS, others on the network can read links and answers: use --tls-cert, or a proxy.")
        server.run()


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def pause(directory: Path) -> None:
    """Suspend the campaign in DIRECTORY: nobody gets records, until dal resume."""
    _tell(directory, "pause", "Paused: nobody gets records. Answers to records in hand are still taken.")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def resume(directory: Path) -> None:
    """End a pause, or a stop, of the campaign in DIRECTORY."""
    _tell(directory, "resume", "The campaign goes on.")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def close(directory: Path) -> None:
    """Close the open round of the campaign in DIRECTORY with the answers it has."""
    told = "Closed. Unanswered records of the batch are not asked again, unless the share close_at is answered. "
    _tell(directory, "close", f"{told}Late answers are kept.")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def stop(directory: Path) -> None:
    """Stop the campaign in DIRECTORY: its open round is closed, and no other begins, until dal resume."""
    _tell(directory, "stop", "Stopped. Nothing was deleted; dal resume goes on.")


def _tell(directory: Path, act: Act, said: str) -> None:
    from dal.campaign import CampaignStore
    from dal.campaign.control import Control

    Control(CampaignStore.open(directory)).tell(act, system_user())
    say(said)
