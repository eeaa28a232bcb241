"""What is particular to each kind of database: how it is reached, and how its errors read."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dal import _files
from dal.campaign import Answer, CampaignStore, Settings, Storage, directory
from dal.campaign.database import open_server
from dal.errors import CampaignError, SettingsError
from tests import databases

CHOSEN = Settings("pool.zarr", ("cat", "dog"), estimator="logistic", strategy="margin", batch_size=4)
ANSWER = Answer(3, "id3", "ann", "submitted", 1)


def create(place: Path, database: str) -> CampaignStore:
    return CampaignStore.make(
        place, replace(CHOSEN, storage=Storage(database=database)), pool_fingerprint="f00d", n_rows=100
    )


# -- a network file system ---------------------------------------------------------------------------------------------


def in_a_table(place: Path) -> str:
    """Write a path as Linux does in its table of mounts."""
    return re.sub(r"[\\ \t\n#]", lambda sign: f"\\{ord(sign[0]):03o}", str(place))


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Have the system tell that a file system of some kind is mounted somewhere."""
    table = tmp_path / "mountinfo"
    real = _files.MOUNTS.read_text()

    def mount(point: Path, kind: str) -> None:
        name = in_a_table(point)
        table.write_text(f"{real}99 27 0:99 / {name} rw,relatime shared:1 - {kind} server:/export rw\n")
        monkeypatch.setattr(_files, "MOUNTS", table)

    return mount


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_sqlite_on_a_network_file_system_is_refused(
    tmp_path: Path, mounted: Callable[[Path, str], None], kind: str
) -> None:
    campaign = create(tmp_path / "große\u3000Ablage 1" / "c", "")
    mounted(tmp_path / "große\u3000Ablage 1", kind)
    with pytest.raises(CampaignError, match=rf"network file system \({re.escape(kind)}\).*PostgreSQL"):
        CampaignStore.open(campaign.directory)
    with pytest.raises(CampaignError, match="network file system"):
        create(tmp_path / "große\u3000Ablage 1" / "d", "")
    assert not (tmp_path / "große\u3000Ablage 1" / "d" / "campaign.toml").exists()
    create(tmp_path / "a disk" / "c", "")


@pytest.mark.parametrize("kind", ["ext4", "fuse.bindfs"])
def test_a_local_disk_is_not(tmp_path: Path, mounted: Callable[[Path, str], None], kind: str) -> None:
    mounted(tmp_path, kind)
    assert create(tmp_path / "c", "").rounds.all() == []


def test_the_nearest_mount_counts(tmp_path: Path, mounted: Callable[[Path, str], None]) -> None:
    mounted(tmp_path, "nfs4")
    table = _files.MOUNTS
    inner = f"98 99 0:98 / {in_a_table(tmp_path / 'local')} rw - ext4 /dev/sda1 rw\n"
    table.write_text(inner + table.read_text())
    assert _files.network_filesystem(tmp_path / "local" / "c") is None
    assert _files.network_filesystem(tmp_path / "locality") == "nfs4"


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite:///campaign.db", "not a url", "postgresql+asyncpg://h/n"])
def test_other_databases_are_refused_before_anything_is_written(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="postgresql://user@host/name"):
        create(tmp_path / "c", url)
    assert not (tmp_path / "c" / "campaign.toml").exists()


def test_a_server_that_is_not_there_is_said_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="Is the server running") as caught:
        create(tmp_path / "c", f"postgresql://ann:swordfish@/labels?host={tmp_path}")
    assert "swordfish" not in str(caught.value)
    assert not (tmp_path / "c" / "campaign.toml").exists()


def test_a_database_that_is_not_there_is_said(tmp_path: Path, postgres: str) -> None:
    url = databases.fresh_schema(postgres).replace("/postgres?", "/labels?")
    with pytest.raises(CampaignError, match=r'"labels" does not exist.*are address, database'):
        create(tmp_path / "c", url)


def test_a_read_only_server_is_said(tmp_path: Path, postgres: str) -> None:
    url = databases.fresh_schema(postgres)
    campaign = create(tmp_path / "c", url)
    toml = campaign.directory / "campaign.toml"
    toml.write_text(toml.read_text().replace("options=", "options=-cdefault_transaction_read_only%3Don%20"))
    reader = CampaignStore.open(campaign.directory)
    assert reader.answers.last_id() == 0
    with pytest.raises(CampaignError, match="read-only"):
        reader.answers.add([ANSWER], source="web")


def test_a_user_without_rights_is_told(tmp_path: Path, postgres: str) -> None:
    url = databases.fresh_schema(postgres)
    databases.run_sql(postgres, "CREATE ROLE guest LOGIN")
    with pytest.raises(CampaignError, match=r"schema is not there|right to create tables"):
        create(tmp_path / "c", url.replace(databases.USER + "@", "guest@"))


def test_a_server_that_ends_in_mid_work_is_said_and_nothing_is_half_done(tmp_path: Path, postgres: str) -> None:
    campaign = create(tmp_path / "c", databases.fresh_schema(postgres))

    def broken() -> object:
        yield ANSWER
        databases.run_sql(
            postgres,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name LIKE 'dal%' AND pid <> pg_backend_pid()",
        )
        yield Answer(4, "id4", "ann", "submitted", 1)

    with pytest.raises(CampaignError, match="run again"):
        campaign.answers.add(broken(), source="web")
    assert campaign.answers.latest().rows.tolist() == []
    assert campaign.answers.add([ANSWER], source="web").new == 1


def test_a_database_that_holds_a_campaign_is_not_taken(tmp_path: Path, postgres: str) -> None:
    url = databases.fresh_schema(postgres)
    first = create(tmp_path / "a", url)
    with pytest.raises(CampaignError, match="holds a campaign already: name another database"):
        create(tmp_path / "b", url)
    with pytest.raises(CampaignError, match="holds a campaign already: open it"):
        create(tmp_path / "a", "")
    assert CampaignStore.open(tmp_path / "a").id == first.id


def test_what_was_interrupted_before_the_database_was_made_is_made_anew(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = databases.fresh_schema(postgres)
    with monkeypatch.context() as broken:
        broken.setattr(directory, "_make_tables", interrupt)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path / "a", url)
    assert (tmp_path / "a" / "campaign.toml").exists()
    with pytest.raises(CampaignError, match="holds no campaign"):
        CampaignStore.open(tmp_path / "a")
    assert create(tmp_path / "a", url).rounds.all() == []


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_campaign_whose_tables_are_gone_is_said(tmp_path: Path, postgres: str) -> None:
    campaign = create(tmp_path / "c", databases.fresh_schema(postgres))
    with campaign.database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE campaign")
    with pytest.raises(CampaignError, match="holds no campaign: restore"):
        CampaignStore.open(campaign.directory)


def test_leases_follow_the_clock_of_the_server(tmp_path: Path, postgres: str) -> None:
    database = open_server(databases.fresh_schema(postgres))
    with database.reading() as connection:
        first, second = database.now(connection), database.now(connection)
    assert first.tzinfo is not None
    assert first < second, "the time goes on within a transaction"
