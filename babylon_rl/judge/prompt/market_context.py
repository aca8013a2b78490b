"""Context that only the judge sees: market, stocks, questions, news, hidden answers.

Stocks are listed, equal news appear once, questions have short names. Every sentence comes from a template of templates.py, from which
the leak check is made.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from babylon_rl.judge.prompt.injection import InjectionScreen
from babylon_rl.judge.prompt.templates import (
    HIDDEN_ANSWERS,
    MARKET,
    NEWS,
    QUESTION,
    STOCKS,
    TEXT_CHARACTERS,
    fill_template,
    knowledge_sentences,
    market_name,
)
from babylon_rl.market.window_market import PredictionOutcome, StockOutcome, WindowOutcomes

MOST_KNOWLEDGE = 40  # sentences of recorded gameKnowledge in a group


def question_names(outcomes: WindowOutcomes) -> dict[str, str]:
    """Short names of numbered questions, by their id and by their text."""
    names: dict[str, str] = {}
    for question in outcomes.predictions:
        if question.question_number is not None:
            name = market_name(question.market_id, question.question_number)
            names[question.market_id] = name
            names.setdefault(question.question, name)
    return names


def masked_outcomes(outcomes: WindowOutcomes, screen: InjectionScreen) -> WindowOutcomes:
    """An hour's market with flagged names, questions and news masked, where ``screen`` masks."""
    names = question_names(outcomes)
    predictions = [
        replace(
            prediction,
            question=screen.text(prediction.question, f"question {names.get(prediction.market_id, prediction.market_id)}"),
            news=tuple(screen.text(text, "news") for text in prediction.news),
        )
        for prediction in outcomes.predictions
    ]
    stocks = [
        replace(
            stock, name=screen.text(stock.name, f"name of {stock.ticker}"), news=tuple(screen.text(text, "news") for text in stock.news)
        )
        for stock in outcomes.stocks
    ]
    return replace(outcomes, predictions=tuple(predictions), stocks=tuple(stocks))


def market_terms(outcomes: WindowOutcomes) -> list[str]:
    """Names under which texts mention the hour's stocks and questions."""
    stocks = [name for stock in outcomes.stocks for name in (stock.ticker, stock.organization_id, stock.name)]
    questions = [name for question in outcomes.predictions for name in (question.market_id, question.question)]
    return [*stocks, *questions, *question_names(outcomes).values()]


def market_context(outcomes: WindowOutcomes) -> list[str]:
    """Sentences on the market as a whole, the stocks and the questions."""
    if not outcomes.stocks and not outcomes.predictions:
        return []
    whole = fill_template(MARKET, window=outcomes.window, mean=_short(outcomes.mean_change), volatility=_short(outcomes.volatility))
    listed = _lists(_stock(stock) for stock in outcomes.stocks)
    stocks = [fill_template(STOCKS, window=outcomes.window, stocks=line) for line in listed]
    return [whole, *stocks, *(_question(question) for question in outcomes.predictions)]


def news_context(outcomes: WindowOutcomes) -> list[str]:
    """The hour's news, each once with all its subjects; questions have their short names."""
    names = question_names(outcomes)
    subjects: dict[str, dict[str, None]] = {}
    news_by_subject: list[tuple[str, tuple[str, ...]]] = [
        (market_name(question.market_id, question.question_number), question.news) for question in outcomes.predictions
    ]
    news_by_subject += [(stock.name, stock.news) for stock in outcomes.stocks]
    for subject, news in news_by_subject:
        for text in news:
            subjects.setdefault(_renamed(text, names), {})[subject] = None
    return [fill_template(NEWS, subject=", ".join(concerned), news=text) for text, concerned in subjects.items()]


def hidden_context(outcomes: WindowOutcomes, answers: Mapping[str, bool]) -> list[str]:
    """Sentences with the engine's own answers, marked as hidden."""
    entries = []
    for question in outcomes.predictions:
        if question.market_id in answers:
            name = market_name(question.market_id, question.question_number)
            entries.append(f"{name} {'YES' if answers[question.market_id] else 'NO'}")
    return [fill_template(HIDDEN_ANSWERS, answers=line) for line in _lists(entries)]


def knowledge_context(metadata_json: Iterable[str]) -> list[str]:
    """Sentences with the gameKnowledge of some trajectories' metadataJson, marked as hidden; each once."""
    sentences: dict[str, None] = {}
    for knowledge in map(game_knowledge, metadata_json):
        if isinstance(knowledge, Mapping):
            sentences |= dict.fromkeys(knowledge_sentences(knowledge))
    shown, more = list(sentences)[:MOST_KNOWLEDGE], len(sentences) - MOST_KNOWLEDGE
    return [*shown, f"[{more} hidden facts left out]"] if more > 0 else shown


def game_knowledge(metadata_json: str) -> Any:
    """The gameKnowledge of a trajectory's metadataJson; None if it has none."""
    try:
        metadata = json.loads(metadata_json)
    except (ValueError, RecursionError):
        return None
    return metadata.get("gameKnowledge") if isinstance(metadata, dict) else None


def _lists(entries: Iterable[str]) -> Iterator[str]:
    """Join entries with commas into lines that fit a template's text field."""
    line = ""
    for entry in entries:
        if line and len(line) + len(entry) + 2 > TEXT_CHARACTERS:
            yield line
            line = ""
        line += f", {entry}" if line else entry
    if line:
        yield line


def _stock(stock: StockOutcome) -> str:
    bare = "".join(filter(str.isalnum, stock.name)).upper()
    name = stock.name if bare.startswith(stock.ticker) else f"{stock.name} ({stock.ticker})"
    change = "" if stock.sentiment == "NEUTRAL" else f" {stock.sentiment}"
    return f"{' '.join(name.split())} {stock.start_price:.5g} {stock.end_price:.5g} {stock.change_percent:+.2f}%{change}"


def _question(question: PredictionOutcome) -> str:
    return fill_template(
        QUESTION, market=market_name(question.market_id, question.question_number), question=question.question,
        start=_short(question.start_probability), end=_short(question.end_probability), answer=question.outcome,
    )  # fmt: skip


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for long, name in names.items():
        if long in text:
            text = text.replace(long, name)
    return text
