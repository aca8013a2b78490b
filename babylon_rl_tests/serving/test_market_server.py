"""``serve market`` over real HTTP: the same market and money as in a run, and a sentence for whatever cannot be served."""

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babylon_rl.cli import run as command
from babylon_rl.evaluation.compare_results import compare_results, sound_results
from babylon_rl.evaluation.play import PLAYER_ID, benchmark_results, scripted
from babylon_rl.evaluation.result_checks import validate_result
from babylon_rl.evaluation.results import decode_result
from babylon_rl.market.simulation.actions import Action, Invalid
from babylon_rl.market.simulation.agents import Agent
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.strategies import factory
from babylon_rl.serving.market_server import LONGEST_BODY, MOST_OF_A_CLIENT, MOST_SESSIONS
from babylon_rl_tests.serving.market_server import Clock, Player, served, small_market

MARKET = small_market()
LONG = json.dumps({"action": "open_perp", "ticker": MARKET.scenario.assets[0].ticker, "side": "long", "usd": 500, "leverage": 2})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(MARKET) as address:
        yield address


@pytest.fixture
def player(url: str) -> Player:
    one = Player(url)
    one.start()
    return one


class Remembering:
    """An agent that writes down what it decided on, and what it decided."""

    def __init__(self, agent: Agent) -> None:
        self.name = agent.name
        self.mandate = getattr(agent, "mandate", "free")
        self._agent = agent
        self.told: list[tuple[Observation, Action]] = []

    def decide(self, seen: Observation) -> Action | Invalid:
        action = self._agent.decide(seen)
        assert not isinstance(action, Invalid)
        self.told.append((seen, action))
        return action


@pytest.mark.parametrize(("name", "mandate"), [("oracle", "free"), ("aggressive", "one-tick")])
def test_the_same_decisions_bring_the_same_money_as_in_a_run(url: str, name: str, mandate: Any) -> None:
    made: list[Remembering] = []

    def make(agent_id: str, seed: int | str) -> Agent:
        made.append(Remembering(factory(name, MARKET.scenario, mandate)(agent_id, seed)))
        return made[-1]

    run = play(MARKET.scenario, {PLAYER_ID: make})
    player = Player(url)
    observation = player.start(name=name, mandate=mandate)["observation"]
    for seen, action in made[0].told:
        assert (observation["balance"], observation["equity"]) == (seen.balance, seen.equity)
        assert observation["stocks"] == [camel(stock) for stock in msgspec.to_builtins(seen.stocks)]
        assert [news["text"] for news in observation["headlines"]] == [news.text for news in seen.recent_headlines()]
        assert player.post("/act", msgspec.json.encode(action).decode())[0] == 200
        _, answer = player.post("/advance")
        observation = answer.get("observation")
    result = decode_result(msgspec.json.encode(answer["result"]))
    assert result.equity == list(run.records[PLAYER_ID].equity) and result.metrics.total_pnl == run.pnl_usd[PLAYER_ID] != 0
    assert validate_result(result) == []
    assert (result.agent_id, result.mandate, result.complete) == (name, mandate, True)


def test_an_observation_shows_nothing_of_the_future(player: Player) -> None:
    _, answer = player.get("/observe")
    shown = json.dumps(answer)
    later = [event.text for event in MARKET.scenario.events if event.tick > 0] + [
        post.text for post in MARKET.scenario.posts if post.tick > 0
    ]
    assert later and not any(json.dumps(text)[1:-1] in shown for text in later)
    assert set(answer["observation"]) >= {
        "tick",
        "ticksLeft",
        "tickSeconds",
        "balance",
        "equity",
        "stocks",
        "questions",
        "headlines",
        "memory",
    }
    assert "answer" not in shown and "crowd" not in shown


def test_one_action_a_tick_and_its_fill_at_once(player: Player) -> None:
    status, fill = player.post("/act", LONG)
    assert status == 200 and fill["type"] == "fill" and fill["usd"] == pytest.approx(1000)
    assert player.get("/observe")[1]["acted"] is True
    assert player.post("/act", LONG)[0] == 409
    _, answer = player.post("/advance")
    assert answer["observation"]["tick"] == 1 and answer["observation"]["positions"][0]["side"] == "long"
    assert answer["observation"]["memory"][0]["action"]["action"] == "open_perp"


def test_a_refused_order_says_why_and_uses_up_the_turn(player: Player) -> None:
    status, refusal = player.post("/act", LONG.replace("500", "500000"))
    assert (status, refusal["type"], refusal["code"]) == (200, "refusal", "balance") and "$" in refusal["reason"]
    assert player.post("/act", LONG)[0] == 409


@pytest.mark.parametrize("body", ["", "buy!", "[]", '{"action": "steal"}', '{"action": "open_perp", "usd": 1e999}', b"\xff\xfe"])
def test_an_answer_that_is_no_action_is_said_counted_and_costs_the_turn(url: str, body: str | bytes) -> None:
    player = Player(url)
    player.start()
    status, answer = player.post("/act", body)
    assert status == 422 and answer["error"]["code"] == "invalid_action" and "turn is lost" in answer["error"]["message"]
    assert player.post("/act", LONG)[0] == 409
    result = player.play_on()
    assert sum(result["metrics"]["invalid"].values()) == 1 and validate_result(decode_result(msgspec.json.encode(result))) == []


def test_the_schema_lists_what_can_be_traded_now(player: Player) -> None:
    _, schema = player.get("/schema")
    forms = {form["properties"]["action"]["const"]: form for form in schema["json_schema"]["schema"]["anyOf"]}
    assert forms["open_perp"]["properties"]["ticker"]["enum"] == [asset.ticker for asset in MARKET.scenario.assets]
    questions = [question["market"] for question in player.get("/observe")[1]["observation"]["questions"]]
    assert forms["buy_prediction"]["properties"]["market"]["enum"] == questions


def test_sessions_do_not_touch_each_other(url: str) -> None:
    first, second = Player(url), Player(url)
    opened = [first.start(name="one"), second.start(name="one")]
    assert opened[0]["token"] != opened[1]["token"] and opened[1]["attempt"] == opened[0]["attempt"] + 1
    first.post("/act", LONG)
    first.post("/advance")
    observed = second.get("/observe")[1]["observation"]
    assert observed["tick"] == 0 and observed == opened[1]["observation"]


def test_many_agents_play_at_once(url: str) -> None:
    def whole(_: int) -> float:
        player = Player(url)
        player.start()
        player.post("/act", LONG)
        return float(player.play_on()["metrics"]["totalPnl"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(whole, range(16)))) == 1


def test_after_the_end_there_is_only_the_result(player: Player) -> None:
    assert player.get("/result")[1]["error"]["code"] == "not_over"
    result = player.play_on()
    assert result["ticksProcessed"] == 30 and result["metrics"]["totalPnl"] == 0
    assert player.get("/result") == (200, result)
    for path in ("/act", "/advance", "/stop"):
        status, answer = player.post(path, LONG)
        assert (status, answer["error"]["code"]) == (409, "over")


def test_who_gives_up_has_a_partial_result(player: Player) -> None:
    player.post("/advance")
    player.post("/act", LONG)
    status, answer = player.post("/stop")
    result = decode_result(msgspec.json.encode(answer["result"]))
    assert status == 200 and not result.complete and result.ticks_processed == 2 and "gave up" in (result.stopped or "")
    assert validate_result(result) == []


@pytest.mark.parametrize("token", ["", "wrong", "ключ".encode().decode("latin-1")])
def test_without_a_session_s_token_nothing_is_told(url: str, token: str) -> None:
    player = Player(url)
    player.token = token
    for status, answer in (player.get("/observe"), player.get("/result"), player.post("/act", LONG), player.post("/advance")):
        assert (status, answer["error"]["code"]) == (401, "no_session") and "POST /start" in answer["error"]["message"]


@pytest.mark.parametrize(
    "said",
    [
        '{"name": ""}',
        '{"name": " x"}',
        '{"name": "a\\u0000b"}',
        '{"name": 5}',
        '{"mandate": "all-in"}',
        '{"nmae": "x"}',
        "nonsense",
        json.dumps({"name": "x" * 81}),
    ],
)
def test_a_start_that_cannot_be_understood_is_refused(url: str, said: str) -> None:
    status, answer = Player(url).post("/start", said)
    assert (status, answer["error"]["code"]) == (400, "start") and len(answer["error"]["message"]) > 20


def test_a_body_has_its_limit(player: Player) -> None:
    status, answer = player.post("/act", "x" * (LONGEST_BODY + 1))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert player.post("/act", LONG)[0] == 200  # it was no answer yet


def test_a_request_that_breaks_off_leaves_the_session_as_it_was(player: Player) -> None:
    host, port = player.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        head = f"POST /act HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {player.token}\r\nContent-Length: 100\r\n\r\n"
        raw.sendall(head.encode() + b'{"action"')
    assert player.get("/observe")[1]["acted"] is False


def test_a_body_that_comes_in_pieces_is_one_body(player: Player) -> None:
    host, port = player.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    pieces = [LONG[:10].encode(), LONG[10:].encode()]
    connection.request("POST", "/act", iter(pieces), {"Authorization": f"Bearer {player.token}"}, encode_chunked=True)
    assert json.load(connection.getresponse())["type"] == "fill"
    connection.close()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/act", 405), ("POST", "/observe", 405)])
def test_unknown_addresses_are_answered_with_the_known_ones(url: str, method: str, path: str, status: int) -> None:
    player = Player(url)
    found, answer = player.get(path) if method == "GET" else player.post(path)
    assert found == status and "POST /start" in answer["error"]["message"]
    assert player.get("/")[1]["snapshot"] == MARKET.id


def test_an_idle_session_ends_and_keeps_what_it_has() -> None:
    clock = Clock()
    with served(MARKET, idle_s=60.0, clock=clock) as url:
        idle, busy = Player(url), Player(url)
        idle.start(name="idle")
        busy.start(name="busy")
        idle.post("/advance")
        clock.now = 59.0
        busy.post("/advance")
        clock.now = 61.0
        status, answer = idle.post("/act", LONG)
        assert (status, answer["error"]["code"]) == (409, "over")
        result = idle.get("/result")[1]
        assert result["stopped"] == "Stopped at tick 1 of 30: idle did nothing for 61 s" and result["ticksProcessed"] == 1
        assert busy.post("/advance")[0] == 200


def test_a_body_that_is_nested_too_deeply_is_refused_and_costs_no_turn(player: Player) -> None:
    for path in ("/start", "/act"):
        for body in ("[" * 970 + "]" * 970, '{"action": "hold", "more": ' + "[" * 129 + "]" * 129 + "}", "[" * 9000):
            status, answer = player.post(path, body)
            assert (status, answer["error"]["code"]) == (400, "invalid_json")
    assert player.post("/act", '{"action": "hold", "more": ' + "[" * 120 + "]" * 120 + "}")[0] != 400
    assert player.get("/observe")[1]["acted"]


def test_one_client_leaves_room_for_others_until_all_is_full() -> None:
    with served(MARKET) as url:
        one, two, three = ([Player(url, f"127.0.0.{number}") for _ in range(MOST_OF_A_CLIENT)] for number in (1, 2, 3))
        for player in one:
            player.start()
        status, answer = one[0].post("/start")
        assert (status, answer["error"]["code"]) == (429, "too_many") and "127.0.0.1" in answer["error"]["message"]
        for player in two[: MOST_SESSIONS - MOST_OF_A_CLIENT]:
            player.start()
        status, answer = three[0].post("/start")
        assert (status, answer["error"]["code"]) == (503, "full")
        one[0].post("/stop")
        assert three[0].post("/start")[0] == 201
        one[1].post("/stop")
        assert Player(url).post("/start")[0] == 201


def test_results_are_kept_where_benchmark_run_keeps_its_own(tmp_path: Path) -> None:
    kept = tmp_path / "new" / "results"
    with served(MARKET, results=kept) as url:
        done, given_up, left = Player(url), Player(url), Player(url)
        for player in (done, given_up, left):
            player.start(name="mine/../../x")
        result = done.play_on()
        given_up.post("/stop")
    finished = [path for path in kept.glob("*.json") if not path.name.endswith(".partial.json")]
    assert [decode_result(path.read_bytes()) for path in finished] == [decode_result(msgspec.json.encode(result))]
    stopped = sorted(decode_result(path.read_bytes()).stopped or "" for path in kept.glob("*.partial.json"))
    assert ["agent gave up" in stopped[0] or "server ended" in stopped[0], len(stopped)] == [True, 2]
    assert len(list(kept.glob("*.decisions.jsonl.gz"))) == 3 and not list(tmp_path.glob("*.json"))


def test_attempts_are_counted_by_agent_across_servers(tmp_path: Path) -> None:
    for expected in (1, 2):
        with served(MARKET, results=tmp_path) as url:
            player, other = Player(url), Player(url)
            assert player.start(name="mine")["attempt"] == expected
            assert other.start(name="other", mandate="one-tick" if expected == 2 else "free")["attempt"] == 1
            assert player.play_on()["repeat"] == expected - 1
            other.post("/stop")
    (tmp_path / "mine-broken.json").write_text("{")
    with served(MARKET, results=tmp_path) as url:
        status, answer = Player(url).post("/start", '{"name": "mine"}')
        assert (status, answer["error"]["code"]) == (500, "unreadable") and "mine-broken.json" in answer["error"]["message"]


def test_a_first_attempt_is_compared_with_a_benchmark_run(tmp_path: Path) -> None:
    market = small_market(minutes=10)
    with served(market, results=tmp_path) as url:
        player = Player(url)
        player.start(name="mine")
        player.play_on()
    runs = benchmark_results([scripted("random")], [market], tmp_path)
    sound, refused = sound_results([*tmp_path.glob("mine-*.json"), *runs.files])
    (pair,) = compare_results(sound).pairs
    assert refused == [] and pair.runs == 1


def test_a_later_attempt_enters_no_comparison(tmp_path: Path) -> None:
    market = small_market(minutes=10)
    with served(market, results=tmp_path) as url:
        for _ in range(2):
            player = Player(url)
            player.start(name="mine")
            player.play_on()
    sound, refused = sound_results(tmp_path.glob("mine-*.json"))
    assert [result.repeat for result in sound] == [0] and [one.agent for one in refused] == ["mine"]
    assert "attempt 2 of an outside agent" in refused[0].reasons[0]
    assert "1 results are left out" in " ".join(compare_results(sound, refused).notes)
    repeats = benchmark_results([scripted("random")], [market], tmp_path, repeats=2)
    assert len(sound_results(repeats.files)[0]) == 2


def test_a_result_that_cannot_be_written_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file in the way")
    with served(MARKET, results=tmp_path / "results") as url:
        player = Player(url)
        player.start()
        for _ in range(29):
            player.post("/advance")
        status, answer = player.post("/advance")
        assert (status, answer["error"]["code"]) == (507, "not_written")
        (tmp_path / "results").unlink()
        assert player.get("/result")[1]["complete"] is True


def test_a_result_that_cannot_be_written_stops_no_other_agent(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "results").write_text("a file in the way")
    with served(MARKET, idle_s=60.0, results=tmp_path / "results", clock=clock) as url:
        idle, busy = Player(url), Player(url)
        idle.start(name="idle")
        clock.now = 50.0
        busy.start(name="busy")
        clock.now = 61.0
        assert busy.post("/advance")[0] == 200 and Player(url).post("/start")[0] == 201
        assert idle.get("/result")[0] == 507
        (tmp_path / "results").unlink()
        assert "idle did nothing" in idle.get("/result")[1]["stopped"]


def test_a_server_that_ends_writes_each_result_that_it_can(tmp_path: Path) -> None:
    with served(MARKET, results=tmp_path) as url:
        for name in ("a", "b", "c"):
            Player(url).start(name=name)
    results = {path.name[0]: path for path in tmp_path.glob("*.partial.json")}
    assert sorted(results) == ["a", "b", "c"]
    for path in results.values():
        path.unlink()
    with served(MARKET, results=tmp_path) as url:
        for name in ("a", "b", "c"):
            Player(url).start(name=name)
        results["a"].mkdir()
    assert results["b"].is_file() and results["c"].is_file()


def test_the_command_refuses_what_it_cannot_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["serve", "market", str(tmp_path / "none.json"), "--port", "0"]) == 3
    assert "There is no snapshot" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert command(["serve", "market", "none.json", "--port", str(taken.getsockname()[1])]) == 3
    assert "choose another port" in capsys.readouterr().err


def camel(fields: dict[str, Any]) -> dict[str, Any]:
    def named(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(part.capitalize() for part in rest)

    return {named(name): value for name, value in fields.items()}
