"""Dollars by litellm's table: what it does not know is unknown, never free."""

import os
import subprocess
import sys

import pytest

from babylon_rl.llm.tokens import forget_encodings, is_priced, litellm_quietly, price, table_entry, token_counter


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "gpt-4o-mini"])
def test_a_known_model_has_its_price_with_and_without_its_provider(model: str) -> None:
    assert price(model, 1_000_000, 1_000_000) == pytest.approx(0.15 + 0.60)


def test_another_wire_has_prices_too() -> None:
    assert price("anthropic/claude-sonnet-4-5", 1000, 100) == pytest.approx(0.003 + 0.0015)


def test_tokens_from_the_cache_cost_what_the_table_says() -> None:
    assert price("openai/gpt-4o-mini", 1_000_000, 0, cached_tokens=1_000_000) == pytest.approx(0.075)


@pytest.mark.parametrize(
    "model",
    [
        "openai/scripted",
        "openpipe:mine",
        "nonsense",
        "",
        "anthropic/gpt-4o-mini",  # another provider's model
        "gemini/gemini-1.5-flash-8b",  # the table has zeros
        "github_copilot/gpt-4o",  # no prices, and litellm's own search would log in
        "ollama/never-heard-of",  # litellm's own search would ask a server
    ],
)
def test_an_unknown_price_is_none(model: str) -> None:
    assert price(model, 1000, 100) is None
    assert not is_priced(model)


@pytest.mark.long
def test_litellm_comes_without_the_net_and_without_a_dotenv_of_its_own() -> None:
    """In a process whose sockets cannot connect; what it adds to the environment is what was set on purpose."""
    program = (
        "import socket, os\n"
        "def refuse(*_): raise AssertionError('the net')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "before = set(os.environ)\n"
        "from babylon_rl.llm.tokens import price\n"
        "print(price('anthropic/claude-sonnet-4-5', 1000, 100), sorted(set(os.environ) - before))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LITELLM")}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100, env=environment)
    usd, added = run.stdout.split(maxsplit=1)
    assert float(usd) == pytest.approx(0.0045)
    assert added.strip() == "['LITELLM_LOCAL_MODEL_COST_MAP', 'LITELLM_MODE']"


def test_prices_of_openais_models_are_litellms() -> None:
    litellm = litellm_quietly()
    # ft: stands for a model of one's own, which litellm wants to be asked for.
    models = [
        name for name, entry in litellm.model_cost.items() if entry.get("litellm_provider") == "openai" and not name.startswith("ft:")
    ]
    chats = [name for name in models if litellm.model_cost[name].get("mode") in ("chat", "responses")][::6]
    assert len(chats) > 10
    for prompt, completion, cached in ((1000, 100, 0), (300_000, 10, 299_999), (1_000_000, 1_000_000, 500_000)):
        tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "cache_read_input_tokens": cached}
        theirs = [sum(litellm.cost_per_token(model=name, **tokens)) for name in chats]
        assert [price(name, prompt, completion, cached) for name in chats] == pytest.approx(theirs)


def test_the_table_is_litellms() -> None:
    table = litellm_quietly().model_cost
    assert table_entry("gpt-4o-mini") == table["gpt-4o-mini"]
    assert table_entry("anthropic/claude-sonnet-4-5") == table["claude-sonnet-4-5"]


@pytest.mark.slow
def test_a_judge_at_an_openai_endpoint_does_not_wait_for_litellm() -> None:
    program = (
        "import sys\n"
        "from babylon_rl.judge.client import JudgeClient\n"
        "from babylon_rl.llm.tokens import price\n"
        "from babylon_rl.settings import Settings\n"
        "JudgeClient(Settings(_env_file=None, judge_base_url='http://127.0.0.1:9', judge_model='openai/scripted'))\n"
        "assert price('openai/gpt-4o-mini', 1000, 100)\n"
        "print('litellm' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100).stdout == "False\n"


def test_tokenizers_that_were_forgotten_count_as_before() -> None:
    count = token_counter("openai/gpt-4o-mini")
    before = count("Pine Software rises on rumours.")
    forget_encodings()
    again = token_counter("openai/gpt-4o-mini")
    assert again is not count
    assert again("Pine Software rises on rumours.") == before > 4
