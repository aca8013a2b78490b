"""What a game's rows hold that nobody meant: odd values for every field and column of trajectories and llm_call_logs.

``...`` leaves a field out. Texts such as ``@1e400@`` stand for what no JSON writer writes, see MARKERS.
"""

from typing import Any

from babylon_rl_tests.rows import WINDOW

Path = tuple[str | int, ...]

# fmt: off
MARKERS = {
    '"@1e400@"': "1e400", '"@-1e400@"': "-1e400", '"@nan@"': "NaN", '"@inf@"': "-Infinity", '"@E@"': "-1.50E+2", '"@01@"': "01",
    '"@half@"': '"\\ud83d!"', '"@low@"': '"\\uDE00"', '"@pair@"': '"\\ud83d\\ude00"', '"@slash@"': '"\\/\\\\u"',
    '"@digits@"': "9" * 5000, '"@309@"': "1" + "0" * 309, '"@308@"': "1" + "0" * 308,
    '"@deep@"': "[" * 20_000 + "]" * 20_000, '"@nested@"': '{"a":[' * 100 + "1" + "]}" * 100,
}
NUMBERS: list[Any] = [
    0, -2.5, 12.25, 250, -250, True, True, False, None, "5", [], "@E@", "@308@", "@309@", "@1e400@", "@-1e400@", "@nan@", "@inf@",
]
JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2.5, 3.0, 10**30, "", "text", "a\0b", "é😀", [], [None], [[{}]], {}, {"": {"a": 1}}, "@1e400@", "@nan@",
    "@half@", "@low@", "@digits@", "@deep@", "@nested@", "@01@", "@pair@", "@slash@",
]
ACTIONS: list[Any] = [
    "TRADING_DECISION", "CREATE_POST", "CREATE_COMMENT", "BUY_SHARES", "SELL_SHARES", "HOLD", "pending", "PENDING", "HOLD_TRADING",
    "POST_BUY", "buy", "A\0B", "RESELL",
]
SUCCESS: list[Any] = [True, False, None, 1, "true", ..., [], "@1e400@"]
PURPOSES: list[Any] = ["action", "reasoning", "response", "other", "evaluation", "ACTION", "", None, 3, ..., ["action"]]
CALLS_OF_STEP: list[Any] = [[], None, ..., {}, "none", [{}], [None], [7, "x"], [[]], ["@1e400@"], ["@half@"]]
TEXTS: list[Any] = ["You trade.", "", "a\0b", "é😀", None, 5, ..., [], "@half@", "@pair@"]
CALL_FIELDS = (
    "model", "modelVersion", "systemPrompt", "userPrompt", "response", "reasoning", "temperature", "maxTokens", "latencyMs", "purpose",
    "actionType", "callId", "messages", "responseFormat", "logprobs", "unknown",
)
OPTIONAL: list[Path] = [
    ("stepNumber",), ("timestamp",), ("providerAccesses",), ("llmCalls",), ("reward",), ("unknown",), ("done",), ("observation",),
    ("environmentState", "activeMarkets"), ("environmentState", "more"), ("action", "parameters"), ("action", "success"),
    ("action", "result"), ("action", "error"), ("action", "reasoning"), ("action", "correctness"), ("action", "attemptId"),
    *(("llmCalls", 0, name) for name in CALL_FIELDS),
]
# Fields of a step that can reject its row, and fields that cannot, with values for them.
REQUIRED: list[tuple[Path, list[Any]]] = [
    *((("environmentState", name), [*NUMBERS, ...]) for name in ("agentBalance", "agentPnL", "openPositions")),
    (("environmentState",), [None, [], "x", ...]),
    (("action",), [None, [], "HOLD", ...]),
    (("action", "actionType"), [*ACTIONS, None, 7, "", "@half@", ...]),
]
TELLING: list[tuple[Path, list[Any]]] = [
    (("llmCalls",), CALLS_OF_STEP),
    (("llmCalls", 0, "purpose"), PURPOSES),
    (("action", "success"), SUCCESS),
    (("timestamp",), [0, -1, 2.5, 1e300, 10**400, "1", None, True]),
    (("stepNumber",), [5, 0, -3, 1.0, 2.5, "1", None, 10**25, True]),
    *((("llmCalls", 0, name), TEXTS) for name in ("systemPrompt", "userPrompt", "response")),
]
HARMLESS = [*((path, [*JUNK, ...]) for path in OPTIONAL), *TELLING]

WHOLE_TEXTS = [
    "", " ", "null", "[]", " [ ] ", "{}", "[{}]", "[[]]", "[null]", '"[]"', "7", "[1e400]", "\ufeff[]",
    '[{"action": 7}, {"action": ]', "NaN",
]
PIECES = [
    '"', "\\", "{", "}", "[", "]", ",", ":", "0", "-", "e", ".", "null", "true", "NaN", "1e400", "\\u0000", "\\ud800", "\n", "\t", "\x01",
    "é", "😀", "\ufeff", " ",
]
WINDOW_IDS = [
    WINDOW, "2025-11-15T09:00", "2025-11-15T11:00", None, "", "2025-13-45T99:00", "2025-02-30T10:00", "2025-11-15T10:30",
    "2025-11-15 10:00", "2025-11-15T10:00Z", " 2025-11-15T10:00", "2025-11-15T1:00", "２０２５-11-15T10:00", "0000-01-01T00:00",
    "benchmark-week", "benchmark-", "Benchmark-1",
]
SCENARIOS = [
    None, "", WINDOW, "2025-11-15T09:00", "trading-bullish-market", "benchmark-week-12", "benchmark-", "benchmark", "benchmarks-1",
    "BENCHMARK-1", " benchmark-1",
]
METRICS = [
    "{}", "", "[]", "null", '{"finalPnL": 7.5}', '{"finalPnL": null}', '{"finalPnL": true}', '{"finalPnL": "5"}', '{"finalPnL": 1e400}',
    '{"finalPnL": -3, "finalBalance": "x"}', '{"finalPnL": 4', '{"finalPnL": NaN}', '{"finalPnL": 9, "more": "\\ud800"}',
    "{'finalPnL': 1}", '{"finalPnL": 1, "finalPnL": 2}', '{"finalPnL": 5, "more": [1e400]}', '{"finalPnL": 100000000000000000000000}',
]
COLUMNS: dict[str, list[Any]] = {
    "windowId": WINDOW_IDS, "scenarioId": SCENARIOS, "metricsJson": METRICS, "windowHours": [1, 4, 0, -1],
    "finalPnL": [None, 0.0, -12.5, 80.0, float("nan"), float("inf"), float("-inf"), 1e308],
    "isEvaluation": [True], "isTrainingData": [False], "usedInTraining": [True],
    "metadataJson": ["", "{", "[1]", '{"gameKnowledge": {"actualOutcomes": {"a": 1}}}', "NaN"], "rewardComponentsJson": ["", "NaN", "[]"],
    "finalStatus": ["error", "timeout", "completed_with_errors", ""], "totalReward": [float("nan"), float("inf"), -1.0],
    "tradesExecuted": [None, -1, 99], "postsCreated": [None, 99], "episodeLength": [0, -5, 400], "durationMs": [0, -1],
}
CHATS = [
    '[{"role": "user", "content": "Q?"}]', '[{"role": "user", "content": ""}]', '[{"role": "user", "content": "\\u0000"}]',
    '[{"role": "system", "content": "S"}, {"role": "user", "content": "Q?", "name": "me"}]',
    '[{"role": "system", "content": ""}, {"role": "user", "content": "Q?"}]',
    '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]',
]
NO_CHATS = [
    None, "", "[]", "null", "{}", "[", '["a"]', '[{"role": "user"}]', '[{"role": "user", "content": null}]',
    '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', '[{"role": "tool", "content": "a"}]',
    '[{"role": "user", "content": "\\ud800"}]', '[{"role": "user", "content": [{"type": "text", "text": "a"}]}]',
]
METADATA = [None, "", "{}", "[]", "{", '{"modelVersion": "v1.0.1"}', '{"purpose": "action", "modelVersion": 3}', "NaN"]
# fmt: on
