"""What leaves the machine for a judge, and what a setting keeps back."""

import pytest

from babylon_rl.errors import SettingsError
from babylon_rl.judge.prompt.privacy import FIELDS, fields_that_leave, private_fields, what_leaves
from babylon_rl.settings import Settings


def with_private(settings: Settings, value: str) -> Settings:
    return settings.model_copy(update={"judge_private_fields": value})


def test_everything_leaves_by_default_and_is_listed(settings: Settings) -> None:
    assert list(fields_that_leave(settings).items()) == [(name, "leaves") for name in FIELDS]


def test_the_list_says_what_is_kept_back(settings: Settings) -> None:
    listed = fields_that_leave(with_private(settings, "posts, reasoning=hash ,parameters.wallet=drop,hidden_answers,game_knowledge,"))
    kept = {
        "posts": "dropped",
        "reasoning": "hashed",
        "parameters.wallet": "dropped",
        "hidden_answers": "dropped",
        "game_knowledge": "dropped",
    }
    assert {name: how for name, how in listed.items() if how != "leaves"} == kept


@pytest.mark.parametrize("value", ["post", "reasoning=mask", "a b", "parameters.", "x.y", "posts=", "=hash"])
def test_an_unknown_field_is_an_error_that_names_those_there_are(settings: Settings, value: str) -> None:
    with pytest.raises(SettingsError, match="JUDGE_PRIVATE_FIELDS names .* write NAME or NAME=hash, .* system_prompt"):
        private_fields(with_private(settings, value))


def test_a_hash_tells_equal_texts_apart_from_others_and_needs_the_secret(settings: Settings) -> None:
    private = private_fields(with_private(settings, "reasoning=hash,response"), b"secret")
    hashed = private.text("reasoning", "because")
    assert hashed == private.text("reasoning", "because") != private.text("reasoning", "Because")
    assert hashed.startswith("#") and len(hashed) == 13 and "because" not in hashed
    assert hashed != private_fields(with_private(settings, "reasoning=hash"), b"other").text("reasoning", "because")
    assert (private.text("response", "x"), private.text("posts", "x"), private.text("reasoning", "")) == ("", "x", "")


def test_named_keys_are_kept_back_at_any_depth(settings: Settings) -> None:
    private = private_fields(with_private(settings, "parameters.wallet,parameters.note=hash"), b"secret")
    given = {"wallet": "0xabc", "legs": [{"wallet": 1, "note": "n", "side": "YES"}], "note": {"a": 1}}
    kept = private.entries("parameters", given)
    assert kept == {"legs": [{"note": private.entries("parameters", {"note": "n"})["note"], "side": "YES"}], "note": kept["note"]}
    assert kept["note"].startswith("#") and private.entries("result", given) == given


def test_a_sentence_says_what_leaves_and_where_to(settings: Settings) -> None:
    assert what_leaves(settings) == "heuristic: nothing leaves the machine"
    asked = with_private(settings, "posts=hash").model_copy(update={"judge_model": "openai/gpt-4o-mini", "judge_audit_model": "x/y"})
    said = what_leaves(asked)
    assert said.startswith("to openai/gpt-4o-mini at https://api.openai.com/v1 and x/y at its provider go: system_prompt, user_prompt, ")
    assert "posts," not in said
    assert said.endswith("; kept back: posts hashed, ids and names of agents")
    elsewhere = asked.model_copy(update={"judge_base_url": "http://a/v1"})
    assert what_leaves(elsewhere).startswith("to openai/gpt-4o-mini at http://a/v1 and x/y at http://a/v1 go: ")
