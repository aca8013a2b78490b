"""Episodes within a token budget: what is kept, what is said of the rest, and that it is always the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.judge.prompt.request import LEAST_TOKENS, MOST_CANDIDATES, Condensed, StepText, condense, in_full, shared_lines
from babylon_rl.llm.tokens import token_counter
from babylon_rl_tests.repeatable import repeatable

count = token_counter("openai/gpt-4o-mini")


def condensed(steps: list[StepText], budget: int) -> Condensed:
    return condense(in_full(steps, count), steps, budget, count)


def make_step(number: int, *, decision: bool = False, words: int = 30, seen: tuple[str, ...] = ()) -> StepText:
    said = (" ".join(f"word{place}" for place in range(words)),) if words else ()
    action = "BUY_SHARES" if decision else "HOLD"
    return StepText(number, seen, f"balance {number}", said, f"{action} detail", action, decision)


def test_an_episode_that_fits_is_shown_in_full() -> None:
    steps = [make_step(number) for number in range(1, 4)]
    found = condensed(steps, 10_000)
    assert found.left_out == 0 and found.tokens == count(found.text)
    assert [line for line in found.text.splitlines() if line.startswith(("1.", "2.", "3."))] and found.text.count("said ") == 3


def test_a_step_shows_what_is_new_to_it() -> None:
    first = StepText(1, ("[1]", "Balance: 5"), "balance 5", (), "HOLD", "HOLD", False)
    second = StepText(2, ("[1]", "Balance: 6"), "balance 5", ("why not",), "BUY x", "BUY", True)
    third = StepText(3, ("[1]", "Balance: 6"), "balance 6", (), "HOLD", "HOLD", False)
    assert condensed([first, second, third], 10_000).text == (
        "1. (balance 5) saw [1] | Balance: 5\n did HOLD\n"
        "2. saw as before, and Balance: 6\n said why not\n did BUY x\n"
        "3. (balance 6) saw as before\n did HOLD"
    )


def test_the_first_the_last_and_the_decisions_are_kept_and_gaps_are_counted() -> None:
    steps = [make_step(number, decision=number in (40, 41, 70)) for number in range(1, 101)]
    found = condensed(steps, 400)
    lines = found.text.splitlines()
    assert found.tokens <= 400 and found.left_out > 0
    for number in (1, 40, 41, 70, 100):
        assert any(line.startswith(f"{number}. ") for line in lines), number
    gaps = [int(line[1:].split()[0]) for line in lines if line.startswith("[") and "left out]" in line]
    shown = [line for line in lines if line.split(".")[0].isdigit()]
    assert sum(gaps) == found.left_out == 100 - len(shown)


def test_what_holds_saw_goes_first_then_their_reasons_then_these_steps_and_the_text_says_so() -> None:
    seen = tuple(f"line {number} of a feed that goes on" for number in range(8))
    steps = [make_step(number, decision=number in (3, 8), seen=(*seen, f"price {number}")) for number in range(1, 11)]
    whole = condensed(steps, 100_000).tokens
    texts = [condensed(steps, budget) for budget in range(whole - 1, LEAST_TOKENS, -60)]
    assert len(texts) > 10
    stages = ["[what it saw left out]", "[cut]", "[the rest left out]", "steps left out]"]
    met = [next(place for place, found in enumerate(texts) if stage in found.text) for stage in stages]
    assert met == sorted(met) and met[0] == 0, "each kind of loss comes after the one before"
    for found in texts:
        assert found.shortened > 0
        others = [line for line in found.text.splitlines() if line.startswith(("2.", "4.", "5.", "6.", "7.", "9."))]
        assert found.decisions_shortened == 0 or not others, "trades are whole while any other step is left"


def test_no_loss_is_said_of_a_step_that_has_nothing_to_lose() -> None:
    bare = [StepText(number, (), "", (), "HOLD", "HOLD", False) for number in range(1, 6)]
    found = condensed([*bare, make_step(6, decision=True, words=400)], 300)
    assert found.text.startswith("1. did HOLD\n") and "HOLD [" not in found.text
    assert (found.shortened, found.decisions_shortened) == (1 + found.left_out, 1)


steps_drawn = st.lists(
    st.builds(
        make_step, st.integers(1, 99), decision=st.booleans(), words=st.integers(0, 200),
        seen=st.lists(st.text(max_size=60), max_size=4).map(tuple),
    ),
    min_size=1, max_size=30,
)  # fmt: skip


@repeatable(60)
@given(steps_drawn, st.integers(0, 2_000))
def test_the_budget_is_kept_and_the_same_steps_give_the_same_text(steps: list[StepText], budget: int) -> None:
    found = condensed(steps, budget)
    assert found == condensed(list(steps), budget)
    assert found.tokens == count(found.text) <= max(budget, LEAST_TOKENS)
    assert 0 <= found.left_out <= found.shortened <= len(steps)
    assert found.decisions_shortened <= sum(step.decision for step in steps)
    assert (found.shortened > 0) == (found.text != condensed(steps, 10**9).text)


@pytest.mark.slow
@repeatable(60)
@given(st.text(min_size=2_000, max_size=4_000), st.integers(LEAST_TOKENS, 400))
def test_one_endless_step_is_cut(text: str, budget: int) -> None:
    steps = [StepText(1, (text,), "", (text,), text, text, True)]
    found = condensed(steps, budget)
    assert found.tokens <= budget and found.text


def test_no_step_is_no_text() -> None:
    assert condensed([], 500).text == ""


def test_shared_lines_are_those_that_save_most_in_order_of_first_occurrence() -> None:
    long, often, rare = "a line that many agents were served " * 3, "a shorter line, but often served", "a line that one agent was served"
    lines = [rare, often, long, "short", often, "short", long, often]

    def within(tokens: int) -> dict[str, str]:
        return shared_lines(lambda: iter(lines), tokens, len)

    assert within(1000) == {often: "[1]", long: "[2]"}
    assert within(len(long) + 10) == {long: "[1]"}  # of both the longer saves more
    assert within(len(often) + 10) == {often: "[1]"}
    assert within(10) == {}


def test_of_very_many_shared_lines_only_those_that_save_most_are_weighed() -> None:
    lines = [f"line {number:06} that two agents were served" for number in range(MOST_CANDIDATES + 10)]
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 10**9

    assert shared_lines(lambda: iter(lines * 2), 1000, count) == {}
    assert counted == lines[:MOST_CANDIDATES]
