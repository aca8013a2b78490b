// The AI SDK by its defaults and OpenAI's Node client at /v1/responses: run by test_node_client.py with OPENAI_BASE_URL and MODEL.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";

const model = createOpenAI()(process.env.MODEL);
const outputs = [];
const price = tool({
  description: "The price of a ticker.",
  inputSchema: jsonSchema({ type: "object", properties: { ticker: { type: "string" } }, required: ["ticker"], additionalProperties: false }),
  execute: async ({ ticker }) => {
    outputs.push(ticker);
    return `${ticker} is at 100`;
  },
});
const asked = { model, tools: { price }, stopWhen: stepCountIs(3), maxRetries: 0 };
const user = { role: "user", content: "Price?" };
const whole = await generateText({ ...asked, system: "You trade.", messages: [user] });
const kept = { providerOptions: { openai: { store: false } } };
const again = await generateText({ ...asked, ...kept, messages: [user, ...whole.response.messages, user] });
const streaming = streamText({ ...asked, messages: [user] });
let streamed = "";
for await (const part of streaming.textStream) streamed += part;
const schema = jsonSchema({ type: "object", properties: { ticker: { type: "string" } }, required: ["ticker"], additionalProperties: false });
const { object } = await generateObject({ model, schema, prompt: "Trade.", maxRetries: 0 });
let broken = "";
await streamText({ model, prompt: "#break now", maxRetries: 0, onError: ({ error }) => (broken = String(error.message ?? error)) }).consumeStream();

const client = new OpenAI({ maxRetries: 0 });
const answer = await client.responses.create({ model: process.env.MODEL, input: "Buy?" });
const events = [];
for await (const event of await client.responses.create({ model: process.env.MODEL, input: "Buy?", stream: true })) events.push(event);
const refused = await client.responses.create({ model: process.env.MODEL, input: "Buy?", previous_response_id: "resp_1" }).catch((error) => error);
console.log(
  JSON.stringify({
    text: whole.text,
    again: again.text,
    streamed: streamed.trim(),
    tokens: whole.usage.inputTokens,
    outputs,
    object,
    broken,
    node: [answer.output_text, events.at(-1).response.output[0].content[0].text.trim(), refused.status, refused.param],
  }),
);
