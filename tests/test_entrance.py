"""The entrance: commands are found without what they work with, and completion and help know every one."""

import click
import pytest

from dal import choices
from dal.cli import main
from dal.learners.presets import PRESETS
from dal.selection.strategy import STRATEGIES


def commands() -> list[str]:
    return main.list_commands(click.Context(main))


@pytest.mark.parametrize("name", commands())
def test_every_command_is_where_the_table_says(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str()


def test_the_names_that_help_lists_are_those_that_mean_something() -> None:
    assert choices.STRATEGIES == STRATEGIES
    assert tuple(PRESETS) == choices.PRESETS
