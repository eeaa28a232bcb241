"""People: let annotators in, who answer over the network."""

from pathlib import Path

import click

from dal.cli.terminal import say


@click.group()
def annotator() -> None:
    """Let people in, who answer over the network."""


@annotator.command("add")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--manager", is_flag=True, help="May close rounds and manage, too.")
@click.option("--url", default="http://127.0.0.1:8000/", show_default=True, help="Where they reach the pages.")
def add_annotator(directory: Path, name: str, manager: bool, url: str) -> None:
    """Create a link to the campaign in DIRECTORY for NAME. It is shown this once.

    From the first one on, nobody gets in without a link.
    """
    from dal.campaign import Annotators, CampaignStore

    def show(token: str) -> None:
        say(f"The link of {name}, shown this once:")
        say(f"{url.rstrip('/')}/enter#{token}")

    Annotators(CampaignStore.open(directory)).add(name, "manager" if manager else "annotator", show=show)


@annotator.command("revoke")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name")
def revoke_annotator(directory: Path, name: str) -> None:
    """Make the token of NAME worthless; the answers stay."""
    from dal.campaign import Annotators, CampaignStore

    Annotators(CampaignStore.open(directory)).revoke(name)
    say(f"The token of {name} is worth nothing any more.")


@annotator.command("quality")
@click.argument("directory", type=click.Path(path_type=Path))
def tell_quality(directory: Path) -> None:
    """Show how well the people of the campaign in DIRECTORY answer: over time, by their pace, by their records."""
    from dal.campaign import CampaignStore
    from dal.campaign.quality import Quality

    quality = Quality(CampaignStore.open(directory))
    for each in quality.courses:
        say(each.text)
    for person in quality.apart:
        say(person.text)
    for told in (text for course in quality.courses for text in course.warnings):
        say(told)
    if not quality.courses:
        say("Nobody has answered yet.")


@annotator.command("list")
@click.argument("directory", type=click.Path(path_type=Path))
def list_annotators(directory: Path) -> None:
    """List everybody who has, or had, a token."""
    from dal.campaign import Annotators, CampaignStore

    for account in Annotators(CampaignStore.open(directory)).all():
        until = "" if account.revoked_at is None else f", revoked {account.revoked_at:%Y-%m-%d %H:%M} UTC"
        say(f"{account.name}: {account.role} since {account.created_at:%Y-%m-%d %H:%M} UTC{until}")
