"""One embedded server for a test session; every test that asks gets a fresh database copied from a template."""

import gc
import gzip
import itertools
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest

from babylon_rl.errors import ModelUnavailable
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.object_store import object_server, object_store
from babylon_rl_tests.repeatable import repeatable

__all__ = ["object_server", "object_store"]  # one server for all rooms: drivers remember its address
DATA = Path(__file__).parent / "data"
WHOLE_FILE, MARK = re.compile(r"^pytestmark = .+$", re.MULTILINE), re.compile(r"pytest\.mark\.(\w+)")
MODELS = {"tiny_base", "packaged_base", "base_directory"}  # fixtures; the last is a service's base, whose client, ART, imports torch too

# What every property test builds on, also one that says nothing of it.
hypothesis.settings.register_profile("repeatable", repeatable(100))
hypothesis.settings.load_profile("repeatable")

# A shell starts background jobs with SIGINT ignored, nohup with SIGHUP, and children inherit it; the tests that send signals need neither.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)
_numbers = itertools.count(1)
# The definitions are loaded once, with the settings of that moment: a demo that was played in the state directory chooses none of them.
_no_demo = pytest.MonkeyPatch()
_no_demo.setattr("babylon_rl.settings.demo_choices", lambda *_: {})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a file that is marked as a whole and deselected: some import torch, which takes ten seconds of a core."""
    if not (collection_path.name.startswith("test_") and collection_path.suffix == ".py"):
        return None
    marks = WHOLE_FILE.search(collection_path.read_text())
    excluded = {term.removeprefix("not ") for term in config.option.markexpr.split(" and ") if term.startswith("not ")}
    return True if marks and excluded.intersection(MARK.findall(marks[0])) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a model are slow: its fixture imports torch."""
    for item in items:
        if MODELS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """No garbage collection while tests are imported, and none of what they import: every full one takes half a second of that."""
    gc.disable()
    try:
        return (yield)
    finally:
        _no_demo.undo()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an embedded server that lives as long as the session; in memory if there is room, as nothing in it must last."""
    with quick_directory(tmp_path_factory.getbasetemp()) as home, use_server(home) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url


@pytest.fixture(scope="session")
def template(server: str) -> Callable[[str], str]:
    """``template(name)``: the database of that name in ``TEMPLATES``, made once per session for others to be copied from."""
    made = {"template1"}

    def get(name: str) -> str:
        if name not in made:
            source, fill = TEMPLATES[name]
            fill(_create(server, name, get(source)))
            made.add(name)
        return name

    return get


@pytest.fixture
def copy_of(server: str, template: Callable[[str], str]) -> Iterator[Callable[[str], Database]]:
    """``copy_of(name)``: a new database like that template, dropped after the test."""
    made: list[str] = []

    def copy(name: str) -> Database:
        source = template(name)
        made.append(f"test_{next(_numbers)}")
        url = _create(server, made[-1], source)
        return Database(url, url)

    yield copy
    with psycopg.connect(server, autocommit=True) as connection:
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database(copy_of: Callable[[str], Database]) -> Database:
    """Nothing in it, not even our schemas."""
    return copy_of("template1")


@pytest.fixture
def database(copy_of: Callable[[str], Database]) -> Database:
    """Migrated and empty."""
    return copy_of("migrated")


@pytest.fixture
def raw_sample_database(copy_of: Callable[[str], Database]) -> Database:
    """The recorded game as the game left it, before any migration of ours."""
    return copy_of("raw_sample")


@pytest.fixture
def sample_database(copy_of: Callable[[str], Database]) -> Database:
    """The recorded game, migrated."""
    return copy_of("sample")


@pytest.fixture
def early_sample_database(copy_of: Callable[[str], Database]) -> Database:
    """The recorded game before its late rows arrived, migrated."""
    return copy_of("early_sample")


@pytest.fixture(scope="session")
def default_settings() -> Settings:
    """Defaults alone: neither the environment nor .env is read. Made once, as it takes 10 ms and a thousand tests ask."""
    return Settings(_env_file=None, **{name: field.default for name, field in Settings.model_fields.items()})


@pytest.fixture
def settings(default_settings: Settings, tmp_path: Path) -> Settings:
    """Defaults, at home in a temporary directory."""
    return default_settings.model_copy(update={"babylon_rl_home": tmp_path / "home"})


def _create(server: str, name: str, source: str) -> str:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")
    return server.rpartition("/")[0] + f"/{name}"


def _migrate(url: str) -> None:
    migrate(Database(url, url))


def _load(url: str, dump: str) -> None:
    sql = gzip.decompress((DATA / f"{dump}.sql.gz").read_bytes())
    psql = Cluster(Path()).programs / "psql"
    subprocess.run([psql, "-q", "-X", "-v", "ON_ERROR_STOP=1", url], input=sql, stdout=subprocess.DEVNULL, check=True)


TEMPLATES: dict[str, tuple[str, Callable[[str], None]]] = {
    "migrated": ("template1", _migrate),
    "raw_sample": ("template1", lambda url: _load(url, "babylon_realtime")),
    "sample": ("raw_sample", _migrate),
    "raw_early_sample": ("template1", lambda url: _load(url, "babylon_realtime_early")),
    "early_sample": ("raw_early_sample", _migrate),
}


@pytest.fixture(scope="session")
def packaged_base() -> Path:
    """The real base model of the CPU line, converted once in the project's state directory."""
    try:
        return base_model_dir(Settings(_env_file=None, local_base_model=None))
    except ModelUnavailable as missing:
        pytest.skip(f"no weights: {missing}")
