"""How events and posts are worded, in the two editions of `babylon_rl.market.headlines`.

The frames are the game's: an event about a question reads ``Event related to: <question>``, a post about an event ``<author>'s take on:
<event>``. The game ends there; here a clause with a direction follows. ``{m}`` is a company's name or a question's label. No author and
no text stands in both editions.
"""

from dataclasses import dataclass

from babylon_rl.market.headlines import HELD_OUT, TRAINING, Edition


@dataclass(frozen=True)
class Words:
    """Words of an edition.

    ``up``, ``down`` and ``flat`` are posts about a stock, ``yes``, ``no`` and ``unsure`` about a question. Those with ``take_`` follow the
    event that they are about.
    """

    authors: tuple[str, ...]
    up: tuple[str, ...]
    down: tuple[str, ...]
    flat: tuple[str, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...]
    unsure: tuple[str, ...]
    take_up: tuple[str, ...]
    take_down: tuple[str, ...]
    take_flat: tuple[str, ...]
    take_yes: tuple[str, ...]
    take_no: tuple[str, ...]
    take_unsure: tuple[str, ...]
    no_news: tuple[str, ...]

    def of(self, direction: int, question: bool) -> tuple[str, ...]:
        """The texts that say a direction (+1, -1, 0) about a question or a stock."""
        if question:
            return {1: self.yes, -1: self.no, 0: self.unsure}[direction]
        return {1: self.up, -1: self.down, 0: self.flat}[direction]

    def takes(self, direction: int, question: bool) -> tuple[str, ...]:
        """The clauses that say a direction about an event that was quoted."""
        if question:
            return {1: self.take_yes, -1: self.take_no, 0: self.take_unsure}[direction]
        return {1: self.take_up, -1: self.take_down, 0: self.take_flat}[direction]


def headline(edition: Edition, company: str, direction: int, rumour: bool, at: float) -> str:
    """An event about a company; ``at`` (0..1) chooses the text."""
    texts = {1: edition.good, -1: edition.bad, 0: edition.neutral}[direction]
    return ("Rumour: " if rumour else "") + texts[int(at * len(texts))].format(c=company)


def related(edition: Edition, question: str, direction: int, rumour: bool, at: float) -> str:
    """An event about a question, in the game's frame."""
    clauses = {1: edition.toward_yes, -1: edition.toward_no, 0: WORDS[edition.name].no_news}[direction]
    return f"{'Rumour' if rumour else 'Event'} related to: {question} {clauses[int(at * len(clauses))]}"


def take(words: Words, author: str, event: str, question: str | None, direction: int, at: float) -> str:
    """A post about an event, in the game's frame. The event's text, or its ``question`` alone, and the author's view of it."""
    clauses = words.takes(direction, question is not None)
    subject = f"Event related to: {question}" if question is not None else f"{event}."
    return f"{author}'s take on: {subject} {clauses[int(at * len(clauses))]}"


WORDS: dict[str, Words] = {
    TRAINING.name: Words(
        authors=(
            "Ada Margin", "Bo Leverage", "Cleo Candle", "Dex Ledger", "Effie Float", "Finn Futures", "Gia Gamma", "Hugo Hedge",
            "Iris Index", "Jules Ticker", "Kai Quant", "Lola Yield", "Milo Spread", "Nora Basis", "Otto Option", "Pia Premium",
        ),
        up=(
            "{m} looks strong from here, I am buying", "Everyone I trust is long {m}", "{m} is about to run", "Good things coming for {m}",
            "Sold everything to own more {m}",
        ),
        down=(
            "{m} looks weak from here, I am selling", "Everyone I trust is short {m}", "{m} is about to fall", "Bad things coming for {m}",
            "Would not touch {m} with a pole",
        ),
        flat=("Nothing to see at {m}", "{m} is going nowhere today", "Watching {m}, no opinion"),
        yes=("{m} is happening, take YES", "My money is on YES in {m}", "No way that {m} ends in NO"),
        no=("{m} is not happening, take NO", "My money is on NO in {m}", "No way that {m} ends in YES"),
        unsure=("{m} is a coin toss", "Reading about {m}, none the wiser"),
        take_up=("I am buying", "I am long now", "Good for the stock"),
        take_down=("I am selling", "I am short now", "Bad for the stock"),
        take_flat=("I stay out", "No opinion"),
        take_yes=("I say YES", "My money is on YES", "It is happening"),
        take_no=("I say NO", "My money is on NO", "It is not happening"),
        take_unsure=("I am none the wiser", "A coin toss"),
        no_news=("Nothing new about the plan", "The plan is discussed again without a result"),
    ),
    HELD_OUT.name: Words(
        authors=(
            "Quinn Collar", "Rhea Rally", "Sol Straddle", "Tess Tranche", "Uma Upside", "Vic Vega", "Wren Wick", "Xavi Xenon",
            "Yara Yawn", "Zed Zero", "Abel Arb", "Bea Bid", "Cal Carry", "Dora Delta", "Eli Escrow", "Fay Fill",
        ),
        up=("Loading up on {m} today", "{m} will surprise everybody to the upside", "I have a very good feeling about {m}", "Higher: {m}"),
        down=("Getting out of {m} today", "{m} will disappoint everybody", "I have a very bad feeling about {m}", "Lower: {m}"),
        flat=("{m} bores me", "No view on {m} this week"),
        yes=("Heard enough, {m} resolves YES", "YES in {m}, easy"),
        no=("Heard enough, {m} resolves NO", "NO in {m}, easy"),
        unsure=("{m} could go either way", "Still thinking about {m}"),
        take_up=("Loading up", "This will lift the price"),
        take_down=("Getting out", "This will sink the price"),
        take_flat=("Nothing for me in this", "I do not care"),
        take_yes=("It will be YES", "YES, easy"),
        take_no=("It will be NO", "NO, easy"),
        take_unsure=("It could go either way", "Still thinking"),
        no_news=("No decision on the plan yet", "The plan is still on the table"),
    ),
}  # fmt: skip
