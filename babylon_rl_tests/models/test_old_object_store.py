"""Places of files at S3-compatible servers that refuse what they do not know: checksums, bulk deletions, conditional writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.files.location import Location
from babylon_rl_tests.object_store import ObjectStore

Refusal = Callable[[dict[str, Any]], tuple[int, str] | None]


def deletes_many(environ: dict[str, Any]) -> bool:
    return environ["REQUEST_METHOD"] == "POST" and environ["QUERY_STRING"].startswith("delete")


def checksums(environ: dict[str, Any]) -> tuple[int, str] | None:
    sent = any(name.startswith(("HTTP_X_AMZ_CHECKSUM", "HTTP_X_AMZ_SDK_CHECKSUM", "HTTP_X_AMZ_TRAILER")) for name in environ)
    return (501, "NotImplemented") if sent and not deletes_many(environ) else None


def deletions_without_md5(environ: dict[str, Any]) -> tuple[int, str] | None:
    return (400, "MissingContentMD5") if deletes_many(environ) and "HTTP_CONTENT_MD5" not in environ else None


def conditions(status: int, code: str) -> Refusal:
    return lambda environ: (status, code) if "HTTP_IF_NONE_MATCH" in environ else None


def ignored_conditions(environ: dict[str, Any]) -> tuple[int, str] | None:
    environ.pop("HTTP_IF_NONE_MATCH", None)
    return None


REFUSALS: dict[str, Refusal] = {
    "nothing, and passes over conditions": ignored_conditions,
    "checksums": checksums,
    "deletions without Content-MD5": deletions_without_md5,
    "bulk deletions": lambda environ: (501, "NotImplemented") if deletes_many(environ) else None,
    "conditions, 501": conditions(501, "NotImplemented"),
    "conditions, 400": conditions(400, "InvalidArgument"),
    "conditions, 405": conditions(405, "MethodNotAllowed"),
    "all": lambda environ: checksums(environ) or deletions_without_md5(environ) or conditions(501, "NotImplemented")(environ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSALS)
def test_a_server_that_refuses_or_passes_over_newer_requests_takes_files_and_deletions(
    kind: str, object_store: ObjectStore, tmp_path: Path
) -> None:
    location, source = Location(object_store.bucket()), tmp_path / "file"
    object_store.refuse = REFUSALS[kind]
    source.write_bytes(b"content")
    for name in ("incoming/a", "incoming/b", "incoming/deep/c"):
        location.put(source, name)
    location.move("incoming/a", "set/a")
    location.place_new("set/a", "marker")
    source.write_bytes(b"another")
    location.put(source, "incoming/other")
    location.place_new("incoming/other", "marker")
    assert (location.read("marker"), location.read("set/a"), location.read("incoming/a")) == (b"content", b"content", None)
    location.clear("incoming")
    location.remove("marker")
    assert (location.below(""), location.exists("incoming")) == ({"set/a"}, False)


def test_a_choice_of_checksums_in_the_environment_counts(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[bool] = []
    object_store.refuse = lambda environ: sent.append(checksums(environ) is not None)
    (tmp_path / "file").write_bytes(b"content")
    for choice in (None, "when_supported"):
        if choice:
            monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", choice)
        Location(object_store.bucket()).put(tmp_path / "file", "a")
        assert any(sent) == bool(choice)
