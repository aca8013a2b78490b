"""One client library against a gateway, with its own defaults: run by test_python_clients.py as ``python python_client.py NAME``.

OPENAI_BASE_URL and OPENAI_API_KEY are set, MODEL is asked; prints a JSON object of what the library made of the answers.
"""

import asyncio
import json
import os
import sys
from typing import Any

MODEL = os.environ["MODEL"]
QUESTION = "Price of BTC?"


def price(ticker: str) -> str:
    """The price of a ticker."""
    return f"{ticker} is at 100"


def openai_chat() -> Any:
    import openai

    with openai.OpenAI(max_retries=0) as client:
        asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
        whole = client.chat.completions.create(**asked)
        with client.chat.completions.stream(**asked) as events:
            streamed = events.get_final_completion()
        return {"text": whole.choices[0].message.content, "streamed": streamed.choices[0].message.content}


def openai_responses() -> Any:
    import openai
    from pydantic import BaseModel

    class Trade(BaseModel):
        ticker: str
        amount: int

    with openai.OpenAI(max_retries=0) as client:
        whole = client.responses.create(model=MODEL, input=QUESTION)
        with client.responses.stream(model=MODEL, input=QUESTION) as events:
            streamed = events.get_final_response().output_text
        parsed = client.responses.parse(model=MODEL, input=QUESTION, text_format=Trade).output_parsed
        return {"text": whole.output_text, "streamed": streamed, "typed": parsed.model_dump() if parsed else None}


def agents() -> Any:
    from agents import Agent, Runner, function_tool, set_tracing_disabled
    from pydantic import BaseModel

    set_tracing_disabled(True)

    class Trade(BaseModel):
        ticker: str
        amount: int

    agent = Agent(name="trader", instructions="You trade.", model=MODEL, tools=[function_tool(price)])

    async def run() -> Any:
        whole = await Runner.run(agent, QUESTION)
        again = await Runner.run(agent, [*whole.to_input_list(), {"role": "user", "content": "And now?"}])
        streaming = Runner.run_streamed(agent, QUESTION)
        async for _ in streaming.stream_events():
            pass
        typed = await Runner.run(Agent(name="typed", model=MODEL, output_type=Trade), QUESTION)
        outputs = [item.output for item in whole.new_items if item.type == "tool_call_output_item"]
        streamed = streaming.final_output
        return {
            "text": whole.final_output, "again": again.final_output, "streamed": streamed, "tools": outputs,
            "typed": typed.final_output.model_dump(),
        }  # fmt: skip

    return asyncio.run(run())


def pydantic_ai() -> Any:
    from pydantic import BaseModel
    from pydantic_ai import Agent, NativeOutput

    class Trade(BaseModel):
        ticker: str
        amount: int

    seen = []

    def noted_price(ticker: str) -> str:
        """The price of a ticker."""
        seen.append(price(ticker))
        return seen[-1]

    agent = Agent(f"openai:{MODEL}", instructions="You trade.", tools=[noted_price])
    whole = agent.run_sync(QUESTION)
    tools = list(seen)
    again = agent.run_sync("And now?", message_history=whole.all_messages())

    async def run() -> str:
        async with Agent(f"openai:{MODEL}").run_stream(QUESTION) as streaming:
            return str(await streaming.get_output())

    typed = Agent(f"openai:{MODEL}", output_type=NativeOutput(Trade)).run_sync(QUESTION).output
    by_tool = Agent(f"openai:{MODEL}", output_type=Trade).run_sync(QUESTION).output
    assert by_tool == typed
    return {"text": whole.output, "again": again.output, "streamed": asyncio.run(run()), "tools": tools, "typed": typed.model_dump()}


def langgraph() -> Any:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent

    model: Any = ChatOpenAI(model=MODEL, max_retries=0, use_responses_api=os.environ.get("RESPONSES") == "yes")
    agent = create_react_agent(model, [tool(price)])
    messages = agent.invoke({"messages": [("user", QUESTION)]})["messages"]
    again = agent.invoke({"messages": [*messages, ("user", "And now?")]})["messages"]
    pieces = [part.text for part in model.stream(QUESTION)]
    schema = {"title": "Trade", "type": "object", "properties": {"ticker": {"type": "string"}, "amount": {"type": "integer"}}}
    typed = model.with_structured_output(schema, method="json_schema").invoke(QUESTION)
    outputs = [message.content for message in messages if message.type == "tool"]
    return {"text": messages[-1].text, "again": again[-1].text, "streamed": "".join(pieces), "tools": outputs, "typed": typed}


def instructor() -> Any:
    import instructor as library
    import openai
    from pydantic import BaseModel

    class Trade(BaseModel):
        ticker: str
        amount: int

    with openai.OpenAI(max_retries=0) as client:
        asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "response_model": Trade, "max_retries": 0}
        by_tool = library.from_openai(client).chat.completions.create(**asked)
        by_schema = library.from_openai(client, mode=library.Mode.JSON_SCHEMA).chat.completions.create(**asked)
    assert by_tool.model_dump() == by_schema.model_dump()
    return {"typed": by_tool.model_dump()}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
