"""A service's key goes to its own addresses, whatever a URL looks like."""

import pytest
from pydantic import SecretStr

from babylon_rl.services import LOCAL, WANDB, service_in_use, unknown_service, upstream_of


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://api.inference.wandb.ai/v1", True),
        ("https://api.inference.wandb.ai:443/v2", True),
        ("http://train.example:8080/v1", True),
        ("http://api.inference.wandb.ai/v1", False),
        ("https://api.inference.wandb.ai.evil.example/v1", False),
        ("https://api.inference.wandb.ai@evil.example/v1", False),
        ("https://evil.example/https://api.inference.wandb.ai/v1", False),
        ("http://train.example/v1", False),
        ("nothing", False),
    ],
)
def test_only_addresses_of_the_settings_and_its_own_are_the_service(settings, url, own):
    given = settings.model_copy(update={"serverless_base_url": "http://train.example:8080"})
    assert (WANDB.refusal(url, given) is None) == own


def test_versions_are_asked_where_their_backend_keeps_them():
    assert [upstream_of(backend, "name") for backend in ("cpu", "gpu", "dry", "serverless", None)] == [LOCAL] * 3 + ["wandb"] * 2
    assert upstream_of(None, "/files") == LOCAL
    assert unknown_service("v1", LOCAL) is None and unknown_service("v1", "wandb") is None
    assert "the service tinker, which this release does not know" in (unknown_service("v1", upstream_of("tinker", "x")) or "")


def test_the_service_in_use_has_a_key_and_trains(settings):
    keyed = settings.model_copy(update={"wandb_api_key": SecretStr("k"), "train_rl_local": False, "trainer": None})
    assert service_in_use(keyed) is WANDB and WANDB.key(keyed) == "k"
    for change in ({"wandb_api_key": None}, {"trainer": "cpu"}, {"train_rl_local": True}):
        assert service_in_use(keyed.model_copy(update=change)) is None
