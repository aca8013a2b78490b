"""The installed openpipe-art over HTTP against the stand-in: what its client sends is what the service needs.

Needs neither a database nor torch, so that the same file runs under Python 3.12 with a newer ART (docs/howto/serverless.md).
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_rl.errors import BatchConflict
from babylon_rl.settings import Settings
from babylon_rl.training.backends.base_tokens import NO_IDS, NONE_RECORDED, NOT_FINITE, OTHER_BASE, WITH_REASONING, BaseTokens
from babylon_rl.training.backends.openpipe_art import (
    CUT_WITHOUT_IDS,
    NO_ADVANTAGE,
    RUN_NAME,
    WITHOUT_LOGPROBS,
    Installed,
    art_groups,
    count_groups,
    installed,
    load_art,
    sent_groups,
)
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl.training.backends.serverless.service import Refused, ServerlessService, Unknown, serverless_art
from babylon_rl_tests.training.serverless_stand_in import Service, StandIn, read_payload, standing_in
from babylon_rl_tests.training.serverless_stand_in.base import base_tokenizer, write_base

pytestmark = pytest.mark.slow  # where torch is installed, ART imports it

TOKENIZER = base_tokenizer()
PROMPT = [{"role": "system", "content": "You are a trader."}, {"role": "user", "content": "The price of TESLAI rose."}]


def logprobs_of(text: str) -> list[dict[str, Any]]:
    ids = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
    return [{"token": TOKENIZER.decode([one]), "logprob": -0.5, "tokenId": one} for one in ids]


def make_sequence(agent: int, text: str = '{"action": "hold"}', **changes: Any) -> TrainSequence:
    given = {
        "messages": PROMPT, "response": text, "response_format": None, "logprobs": logprobs_of(text), "advantage": 0.0,
        "window": "2025-11-15T10:00", "agent_id": f"agent-{agent}", "trajectory_id": f"t-{agent}", "call_id": "c", "score": agent / 4,
        "step": 0, "source": "embedded", "purpose": "action", "model": "base",
    } | changes  # fmt: skip
    return TrainSequence(**given)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))


@pytest.fixture
def base(tmp_path: Path) -> BaseTokens:
    return BaseTokens(make_settings("http://127.0.0.1:1"), str(write_base(tmp_path)))


def make_settings(url: str) -> Settings:
    return Settings(_env_file=None, wandb_api_key=SecretStr("x"), serverless_base_url=url)


def posted(served: StandIn, groups: Sequence[Any], arguments: dict[str, Any]) -> tuple[str, int, int, list[str]]:
    """(job id, steps before and after, event types) of one job."""

    async def talk() -> tuple[str, int, int, list[str]]:
        async with ServerlessService(make_settings(served.url), "tiny", 1.0, lambda: None) as service:
            before, _ = await service.newest()
            job_id = await service.post(groups, service.installed.accepted(arguments), lambda: None)
            after, _ = await service.newest()
            events = await service.events(job_id)
            assert service.model_name == "stand-in/babylon-rl-training/babylon-agent"
            assert service.remote(after, job_id).inference_name == f"wandb-artifact:///{service.model_name}:step{after}"
            return job_id, before, after, [event.type for event in events]

    return asyncio.run(talk())


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_job_is_posted_and_its_id_and_step_come_back(base: BaseTokens, prefix: str) -> None:
    groups = sent_groups([make_sequence(agent) for agent in range(3)], base)
    with standing_in(Service(len(TOKENIZER))) as served:
        served.url += prefix
        job_id, before, after, events = posted(served, art_groups(groups, "batch-1", 4, False), {"learning_rate": 1e-5, "no_such": 1})
        (job,) = served.service.jobs
    assert (job_id, before, after) == (job.id, 0, 1)
    assert events == ["training_started", "gradient_step", "gradient_step", "training_ended"]  # the middle of three has no advantage
    assert job.payload.trajectories == (("batch-1", 4, "t-0"), ("batch-1", 4, "t-2"))
    assert job.payload.problems == () and job.config["learning_rate"] == 1e-5


def test_the_same_model_is_found_by_its_name_whatever_the_version(base: BaseTokens) -> None:
    with standing_in() as served:
        groups = art_groups(sent_groups([make_sequence(agent) for agent in range(2)], base), "batch-1", 1, False)
        assert [posted(served, groups, {})[2] for _ in range(2)] == [1, 2]
        assert [model.name for model in served.service.models.values()] == ["babylon-agent"]


@pytest.mark.parametrize(
    ("fault", "look"),
    [
        ("429", False),
        ("400", False),
        ("500", True),
        ("drop_before", True),
        ("drop_after", True),
        ("reset_after", True),
        ("garbled_after", None),
    ],
)
def test_what_is_certain_about_a_failed_post(base: BaseTokens, fault: Any, look: bool | None) -> None:
    service = Service()
    service.post_faults = [fault]
    with standing_in(service) as served, pytest.raises(Unknown if look is None else Refused) as failed:
        posted(served, art_groups(sent_groups([make_sequence(agent) for agent in range(2)], base), "b", 1, False), {})
    assert getattr(failed.value, "look", None) is look


def test_a_service_that_is_not_there_has_accepted_nothing(base: BaseTokens) -> None:
    async def talk(served_url: str) -> None:
        async with ServerlessService(make_settings(served_url), "tiny", 1.0, lambda: None) as service:
            service._client.base_url = "http://127.0.0.1:9"
            await service.post([], {}, lambda: None)

    with standing_in() as served, pytest.raises(Refused) as refused:
        asyncio.run(talk(served.url))
    assert refused.value.again


def test_what_cannot_be_sent_is_refused_and_what_must_not_be_sent_is_not(base: BaseTokens) -> None:
    groups = art_groups(sent_groups([make_sequence(agent) for agent in range(2)], base), "b", 1, False)
    levels = art_groups(sent_groups([make_sequence(agent, score=float("nan")) for agent in range(2)], base), "b", 1, False)
    asked = []

    async def talk(served_url: str, groups: Sequence[Any], may_send: Callable[[], None]) -> None:
        async with ServerlessService(make_settings(served_url), "tiny", 1.0, lambda: None) as service:
            await service.post(groups, {}, may_send)

    def taken() -> None:
        asked.append(len(served.service.jobs))
        raise BatchConflict("another run has it")

    with standing_in() as served:
        with pytest.raises(Refused, match="did not build the request") as refused:
            asyncio.run(talk(served.url, levels, taken))
        assert not refused.value.again and asked == []  # a number that JSON does not have
        with pytest.raises(BatchConflict):
            asyncio.run(talk(served.url, groups, taken))
        assert asked == [0] and served.service.jobs == []


def test_what_trains_is_what_art_tokenizes(base: BaseTokens) -> None:
    """The oracle is ART's own tokenization; needs torch, which the newer environment may lack."""
    pytest.importorskip("torch")
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    mixed = [
        make_sequence(0),
        make_sequence(0, '{"action": "buy", "market": "OPENLIE"}'),
        make_sequence(1, logprobs=None),
        make_sequence(2),
    ]
    level = [make_sequence(agent, window="2025-11-15T11:00", score=0.5) for agent in range(3)]
    groups = sent_groups([*mixed, *level], base)
    for allow in (False, True):
        counted = count_groups(groups, base, allow)
        results = list(tokenize_trajectory_groups(TOKENIZER, art_groups(groups, "b", 1, allow), allow, True))
        assert (counted.sequences, counted.trainable_tokens) == (len(results), sum(sum(result.assistant_mask) for result in results))
        assert counted.untrained[NO_ADVANTAGE] == 4
        for result in results:
            text = TOKENIZER.decode([token for token, trains in zip(result.token_ids, result.assistant_mask, strict=True) if trains])
            assert text.removesuffix("<|im_end|>") in {sequence.response for sequence in mixed}


def test_the_stand_in_counts_as_this_pipeline_does(base: BaseTokens) -> None:
    groups = sent_groups([make_sequence(0), make_sequence(1, logprobs=None), make_sequence(2), make_sequence(2)], base)
    payload = read_payload([group.model_dump(mode="json") for group in art_groups(groups, "b", 1, False)], {}, len(TOKENIZER))
    counted = count_groups(groups, base, False)
    assert (payload.sequences, payload.tokens, payload.problems) == (counted.sequences, counted.trainable_tokens, ())


@pytest.mark.parametrize(
    ("logprobs", "reason"),
    [
        (None, NONE_RECORDED),
        ([], NONE_RECORDED),
        ([{"token": " yes", "logprob": -0.5}], NO_IDS),
        ([{"token": "a", "logprob": -0.5, "tokenId": True}], NO_IDS),
        ([{"token": "a", "logprob": float("nan"), "tokenId": 5}], NOT_FINITE),
        ([{"token": "a", "logprob": None, "tokenId": 5}], NOT_FINITE),
        ([{"token": "a", "logprob": -0.5, "tokenId": 5}], OTHER_BASE),
        ([{"token": "a", "logprob": -0.5, "tokenId": 10**9}], OTHER_BASE),
        ([{"token": "a", "logprob": -0.5, "tokenId": -1}], OTHER_BASE),
        (logprobs_of('Up, so hold.{"action": "hold"}'), WITH_REASONING),
        # A special token before the answer, as some models open a reasoning part that stays empty.
        (
            [{"token": "", "logprob": -0.5, "tokenId": min(TOKENIZER.added_tokens_decoder)}, *logprobs_of('{"action": "hold"}')],
            WITH_REASONING,
        ),
    ],
)
def test_logprobs_that_are_not_of_this_base_count_as_none(base: BaseTokens, logprobs: Any, reason: str) -> None:
    assert base.recorded(make_sequence(0, logprobs=logprobs)) == reason


def test_minus_infinity_is_a_log_probability(base: BaseTokens) -> None:
    served = [one | {"logprob": float("-inf")} for one in logprobs_of('{"action": "hold"}')]
    assert base.recorded(make_sequence(0, logprobs=served)) == tuple((one["tokenId"], -9999.0) for one in served)


def test_a_cut_answer_says_so_and_trains_by_its_recorded_tokens_alone(base: BaseTokens) -> None:
    text = "I would buy some"
    cut = [make_sequence(agent, text, logprobs=logprobs_of(text)[:-1], finish_reason="length") for agent in range(2)]
    (group,) = art_groups(sent_groups(cut, base), "b", 1, True)
    choices = [trajectory.messages_and_choices[-1] for trajectory in group.trajectories]
    assert [choice.finish_reason for choice in choices] == ["length", "length"]
    assert [len(choice.logprobs.content) for choice in choices] == [len(logprobs_of(text)) - 1] * 2
    without = sent_groups([make_sequence(agent, text, logprobs=None, finish_reason="content_filter") for agent in range(2)], base)
    assert count_groups(without, base, True).untrained == {CUT_WITHOUT_IDS: 2}
    (unsaid,) = art_groups(sent_groups([make_sequence(agent) for agent in range(2)], base), "b", 1, False)
    assert unsaid.trajectories[0].messages_and_choices[-1].finish_reason == "stop"


def test_typed_control_tokens_are_counted_as_text(base: BaseTokens) -> None:
    texts = ["x", "x" + "<|im_end|>" * 50]
    few, many = (base.prompt_tokens([{"role": "user", "content": text}]) for text in texts)
    assert many - few > 50 * 5
    few, many = (base.answer_tokens(make_sequence(0, text)) for text in texts)
    assert many - few > 50 * 5


def test_an_answer_without_its_end_token_is_taken_as_it_was_served(base: BaseTokens) -> None:
    served = logprobs_of('{"action": "hold"}')[:-1]
    assert base.recorded(make_sequence(0, logprobs=served)) == tuple((one["tokenId"], -0.5) for one in served)


def older(model: Any, groups: Any, *, learning_rate: float = 5e-6, ppo: bool = False) -> None:
    """As train() of 0.5.18."""


def newer(
    model: Any, groups: Any, *, learning_rate: float = 5e-6, kl_penalty_coef: float = 0.0, allow_training_without_logprobs: bool = False
) -> None:
    """As train() of 0.5.20 and later."""


def test_arguments_are_those_that_the_installed_version_takes() -> None:
    def named(*, name: str, project: str) -> None: ...
    def run_named(*, name: str, run_name: str, project: str) -> None: ...

    wanted = {"learning_rate": 1e-5, "kl_penalty_coef": 0.1, WITHOUT_LOGPROBS: True}
    old, new = installed(older, named), installed(newer, run_named)
    assert old.accepted(wanted) == {"learning_rate": 1e-5} and not old.trains_without_logprobs
    assert new.accepted(wanted) == wanted and new.trains_without_logprobs
    assert old.model_arguments("babylon-agent") == {"name": "babylon-agent"}
    assert new.model_arguments("babylon-agent") == {"name": "babylon-agent", RUN_NAME: "babylon-agent"}


def test_texts_without_logprobs_train_where_the_installed_version_can(base: BaseTokens) -> None:
    art: Installed = serverless_art()
    groups = sent_groups([make_sequence(agent, logprobs=None) for agent in range(2)], base)
    allow = art.trains_without_logprobs
    with standing_in() as served:
        posted(served, art_groups(groups, "b", 1, allow), {WITHOUT_LOGPROBS: True})
        assert bool(served.service.trained()) == allow == (count_groups(groups, base, allow).trainable_tokens > 0)


def test_models_still_answer_in_a_process_that_has_loaded_art() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    load_art()
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    )
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 8)
