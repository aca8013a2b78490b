// The official Node client against a gateway: run by test_node_client.py with OPENAI_BASE_URL.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0, defaultHeaders: { "x-babylon-agent": "agent-7" } });
const messages = [{ role: "user", content: "Prices?" }];
const whole = await client.chat.completions.create({ model: "babylon-agent", messages }).withResponse();
let streamed = "";
for await (const part of await client.chat.completions.create({ model: "babylon-agent", messages, stream: true })) {
  streamed += part.choices[0]?.delta?.content ?? "";
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
let error = {};
try {
  await client.chat.completions.create({ model: "v9.9.9", messages });
} catch (raised) {
  error = { name: raised.constructor.name, status: raised.status, code: raised.code };
}
const answer = whole.data.choices[0].message.content;
console.log(JSON.stringify({ answer, version: whole.response.headers.get("x-babylon-version"), streamed, models, error }));
