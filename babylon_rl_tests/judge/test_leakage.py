"""Leaks: every canary in a judge's words is found wherever it stands, and what agents are really served holds none."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.judge.leakage import (
    RESPONSE,
    HiddenAnswer,
    Leak,
    LeakContext,
    find_leaks,
    knowledge_needles,
    knowledge_numbers,
    plainly_typed,
)
from babylon_rl.judge.prompt import templates
from babylon_rl.judge.prompt.templates import TEMPLATES, Template, fill_template, knowledge_sentences

PROMPT = [{"role": "system", "content": "You are a trader."}, {"role": "user", "content": "OpenLIE $450. What do you do?"}]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "number": st.none() | st.floats(allow_nan=True) | st.integers(-(10**9), 10**9),
    "label": st.sampled_from(["BULLISH", "BEARISH", "NEUTRAL", None]),
    "answer": st.sampled_from(["YES", "NO", "UNRESOLVED"]),
    "side": st.sampled_from(["YES", "NO", "UP", "DOWN", None]),
    "verdict": st.sampled_from(["right", "wrong", "undecided"]),
    "window": st.datetimes().map(lambda moment: f"{moment.year:04}-{moment:%m-%dT%H}:00"),
    "text": st.text(max_size=1000),
}
SPACES = (" ", "\n", "\r\n", "\t", "  \n ", "\u00a0", "")


@st.composite
def sentences(draw: st.DrawFn) -> tuple[Template, str]:
    template = draw(st.sampled_from(TEMPLATES))
    return template, fill_template(template, **{name: draw(VALUES[kind]) for _, name, kind in template.parts if name is not None})


@st.composite
def disguises(draw: st.DrawFn, text: str) -> str:
    """The same words in other letters, spaces and escapes."""
    rng = draw(st.randoms(use_true_random=False))
    text = draw(st.sampled_from([str, str.upper, str.lower, str.swapcase, lambda same: _mixed(same, rng)]))(text)
    if draw(st.booleans()):
        text = "".join(rng.choice(SPACES) if letter == " " else letter for letter in text)
    if draw(st.booleans()):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(SPACES) + text[place:]
    for _ in range(draw(st.integers(0, 2))):
        text = json.dumps(text, ensure_ascii=draw(st.booleans()))
    return text


def _mixed(text: str, rng: random.Random) -> str:
    return "".join(rng.choice((letter.upper(), letter.lower())) for letter in text)


@st.composite
def planted(draw: st.DrawFn, text: str, roles: Sequence[str]) -> tuple[list[dict[str, str]], str, str]:
    """The text somewhere in a conversation: the messages, the response, and where it was put."""
    place = draw(st.integers(0, len(roles)))
    around = draw(st.text(max_size=200)), draw(st.text(max_size=200))
    texts = [draw(st.text(max_size=100)) for _ in range(len(roles) + 1)]
    texts[place] = around[0] + text + around[1]
    messages = [{"role": role, "content": content} for role, content in zip(roles, texts[:-1], strict=True)]
    return messages, texts[-1], RESPONSE if place == len(roles) else f"message {place} ({roles[place]})"


ROLES = st.sampled_from([("system", "user"), ("user",), ("system", "user", "assistant", "user")])


@pytest.mark.slow
@given(st.data())
def test_every_canary_in_a_judges_words_is_found_where_it_was_put(data: st.DataObject) -> None:
    template, sentence = data.draw(sentences())
    messages, response, where = data.draw(planted(data.draw(disguises(sentence)), data.draw(ROLES)))
    found = find_leaks(messages, response)
    assert (template.kind, where) in {(leak.kind, leak.where) for leak in found}
    assert all(leak.excerpt for leak in found)


KNOWLEDGE = st.dictionaries(
    st.sampled_from(("trueProbabilities", "actualOutcomes", "futureOutcomes")),
    st.dictionaries(
        st.text(min_size=1, max_size=20), st.booleans() | st.floats(0, 1) | st.sampled_from(["YES", "NO"]), min_size=1, max_size=5
    ),
    min_size=1,
)


@pytest.mark.slow
@given(st.data(), KNOWLEDGE)
def test_recorded_game_knowledge_is_found_in_sentences_and_as_json(data: st.DataObject, knowledge: dict[str, Any]) -> None:
    sections = [json.dumps({name: entries}, indent=data.draw(st.sampled_from([None, 2]))) for name, entries in knowledge.items()]
    whole = json.dumps({"isTrainingData": True, "gameKnowledge": knowledge}, separators=(",", ":"))
    canary = data.draw(st.sampled_from([*knowledge_sentences(knowledge), *sections, whole]))
    messages, _, where = data.draw(planted(data.draw(disguises(canary)), ("system", "user")).filter(lambda put: put[2] != RESPONSE))
    assert ("game_knowledge", where) in {(leak.kind, leak.where) for leak in find_leaks(messages, "hold")}


TALK = (
    "official answer is yes the question score rank gameKnowledge outcome unknown: { } \" ' , . $ 450 +2.1% Over the hour went from to "
    "hidden from the agents news of this hour BULLISH actual outcomes true probabilities rulers judge gave"
)


@given(st.data())
def test_random_talk_of_markets_is_no_leak(data: st.DataObject) -> None:
    words = st.sampled_from(TALK.split(" "))
    text = " ".join(data.draw(st.lists(words, max_size=12)))
    leaks = find_leaks([{"role": "user", "content": text}], text)
    assert not [leak for leak in leaks if leak.kind in ("outcome", "score")], text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('"aiJudgeReward": 0.83', "score"), ("Your aiJudgeReward was 0.4 last time", "score"), ("RULER score: 0.91", "score"),
        ("RULER scores: min=0.25, max=0.92", "score"), ('{"normalizedScore":-1.2}', "score"), ("aiJudgeReasoning: it lost", "score"),
        ("GROUND TRUTH (agent didn't know):\n- $TRUMP crashed to $10 (-16%)", "outcome"), ('"groundTruth": {"x": true}', "outcome"),
        ('"marketOutcomes": {"m1": true}', "outcome"), ("trueProbabilities = {'m1': 0.3}", "game_knowledge"),
        ('"future_outcomes": ["up"]', "game_knowledge"), ('{"gameKnowledge": {"secret": 3}}', "game_knowledge"),
    ],
)  # fmt: skip
def test_raw_forms_are_found_in_prompts(text: str, kind: str) -> None:
    (leak,) = find_leaks([PROMPT[0], {"role": "user", "content": f"Markets.\n{text}\nGo."}], "hold")
    assert (leak.kind, leak.where) == (kind, "message 1 (user)")


@pytest.mark.parametrize(
    "text",
    [
        '{"gameKnowledge":{"trueProbabilities":{},"actualOutcomes":{}}}', '"aiJudgeReward": null', "actual outcomes: not known yet",
        "Your rank: 3 of 12. Score 0.4.", "The outcome is YES, says everybody", '{"id":"m9","outcome":true}', "ground truth matters",
        "Over the hour OpenLIE went from $1 to $2.",
    ],
)  # fmt: skip
def test_what_gives_nothing_away_is_no_leak(text: str) -> None:
    context = LeakContext(frozenset({"m1"}), frozenset({1}))
    assert find_leaks([{"role": "user", "content": text}], text, context) == []


@pytest.mark.parametrize(
    "row",
    [
        {"id": "m1", "text": "Will it?", "outcome": False}, {"questionNumber": 3, "outcome": True, "rank": 1},
        {"marketId": "m1", "note": "x", "outcome": True},
    ],
)  # fmt: skip
def test_an_open_questions_own_row_gives_its_secret_away(row: dict[str, Any]) -> None:
    context = LeakContext(frozenset({"m1"}), frozenset({3}))
    for text in (json.dumps([{"id": "m0"}, row]), json.dumps(json.dumps(row)), str(row).replace("'", '"').lower()):
        messages = [PROMPT[0], {"role": "user", "content": f"QUESTIONS: {text}"}]
        assert [leak.kind for leak in find_leaks(messages, "hold", context)] == ["hidden_answer"]
        assert find_leaks(messages, "hold", LeakContext(frozenset({"m2"}), frozenset({4}))) == []


def test_knowledge_is_recognised_by_its_values_under_another_name() -> None:
    knowledge = {"trueProbabilities": {"241774855181560797": 0.8342, "m1": 0.5}, "actualOutcomes": {"241774855181560797": True}}
    context = LeakContext(knowledge=knowledge_needles(knowledge))
    for text in ('{"p": {"241774855181560797": 0.8342}}', 'truth = {"241774855181560797":true}'):
        assert [leak.kind for leak in find_leaks([{"role": "user", "content": text}], text, context)] == ["game_knowledge"] * 2
    harmless = '{"prices": {"m1": 0.5}, "id": "241774855181560797"}'
    assert find_leaks([{"role": "user", "content": harmless}], harmless, context) == []


@pytest.mark.parametrize(
    "text",
    [
        "The chance is 0.8342.", "I hear 83.42 %", "It was 0.48610174994268 all along", "somewhere near 0.486102, they say",
        "The committee resigns on Friday before noon.", '"The committee resigns on friday before noon"',
    ],
)  # fmt: skip
def test_a_bare_value_of_recorded_knowledge_is_found(text: str) -> None:
    knowledge = {
        "trueProbabilities": {"m1": 0.8342, "m2": 0.48610174994268, "m3": 0.5},
        "futureOutcomes": [{"text": "The committee resigns on Friday before noon."[:-1], "when": "later"}],
    }
    context = LeakContext(knowledge=knowledge_needles(knowledge), numbers=knowledge_numbers(knowledge))
    for answer in ("hold", text):
        leaks = find_leaks([PROMPT[0], {"role": "user", "content": f"Markets: {text}"}], answer, context)
        assert {leak.kind for leak in leaks} == {"game_knowledge"} and len(leaks) == 1 + (answer == text)


@pytest.mark.parametrize(
    "text", ["It costs 0.5", "m3 at 0.83", "10.8342 dollars", "0.83421 is another number", "later", "1.8342 or 0.8342001"]
)
def test_numbers_and_words_that_anybody_has_are_no_knowledge(text: str) -> None:
    knowledge = {"trueProbabilities": {"m1": 0.8342, "m3": 0.5, "m4": 0.83}, "futureOutcomes": [{"when": "later"}]}
    context = LeakContext(knowledge=knowledge_needles(knowledge), numbers=knowledge_numbers(knowledge))
    assert find_leaks([{"role": "user", "content": text}], text, context) == []


OPEN = (HiddenAnswer(("Q1", "question 1", "m1", "Will it rain?"), True), HiddenAnswer(("Q2", "question 2", "m2", "Will it snow?"), False))


@pytest.mark.parametrize(
    "text",
    [
        "The true answer to Q1 turns out to be YES.", "FEED\nThe answer to Will it snow? is NO.\nGo.", "Question 1 resolves YES.",
        "YES is the correct answer to Q1!", "Officially, the outcome of question 2 is no",
        "m1: correct answer yes", '{"note": "the hidden answer to Q2 is \\"no\\""}',
    ],
)  # fmt: skip
def test_a_plain_statement_of_an_open_questions_answer_is_found_in_prompts(text: str) -> None:
    context = LeakContext(answers=OPEN)
    (leak,) = find_leaks([PROMPT[0], {"role": "user", "content": f"Markets.\n{text}"}], text, context)
    assert (leak.kind, leak.where) == ("hidden_answer", "message 1 (user)"), "an agent may guess"


@pytest.mark.parametrize(
    "text",
    [
        "I think the answer to Q1 is YES.", "If Q1 resolves YES I win.", "The true answer to Q1 is NO.",
        "Q1 resolves YES or NO on Friday.",
        "Q12 resolves YES.", "Rumour: the outcome of Q1 is YES.", "The answer to Q3 is YES.", "Q1 trades at 0.5 for YES.",
        "Buy YES on Q1, the answer is near.",
        "somebody: the correct answer to Q1 could be YES", "Will it rain? YES is at 0.61, NO at 0.39", "There is no answer to Q2 yet.",
        "Will it snow? No answer is known.",
    ],
)  # fmt: skip
def test_guesses_and_wrong_answers_state_nothing(text: str) -> None:
    assert find_leaks([{"role": "user", "content": text}], "hold", LeakContext(answers=OPEN)) == []


def test_an_agents_own_guess_is_no_leak() -> None:
    guess = '{"action": "buy", "why": "the actualOutcomes: {yes}, my score: 0.9, ground truth: it rises"}'
    assert find_leaks(PROMPT, guess) == []
    assert find_leaks(PROMPT, fill_template(templates.SCORE, agent="a", score=1, rank=1, group=5))[0].where == RESPONSE


def test_a_find_says_where_and_how_it_reads() -> None:
    sentence = fill_template(templates.STOCK, name="OpenLIE", start=450.0, end=471.5, change=4.77777777, label="BULLISH")
    text = f"FEED:\nnothing\n\n{sentence.upper()}\nWhat now?"
    (leak,) = find_leaks([{"role": "user", "content": text}], "hold")
    excerpt = "VER THE HOUR OPENLIE WENT FROM $450 TO $471.5, A CHANGE OF 4.77778 %: BULLISH."
    assert leak == Leak("outcome", "message 0 (user)", excerpt)
    assert (leak.where, leak.excerpt) == ("message 0 (user)", excerpt)


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="label is 'great'"):
        fill_template(templates.STOCK, name="OpenLIE", start=1, end=2, change=3, label="great")
    with pytest.raises(KeyError):
        fill_template(templates.STOCK, name="OpenLIE")


TYPED = str.maketrans("‐‑‒–—−“”„‟«»‘’‚‛", "-" * 6 + '"' * 6 + "'" * 4, "\xad\u200b\u200c\u200d\u2060\ufeff")


@given(st.text(st.characters() | st.sampled_from([chr(code) for code in TYPED])))
def test_typography_is_made_plain_character_by_character(text: str):
    assert plainly_typed(text) == text.translate(TYPED)
