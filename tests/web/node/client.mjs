// Calls the npm client `openai` as told on stdin, `{url, key, calls: [{method, file, given}]}`, and prints what came of
// each call as JSON: the value, the events of a stream, or the error that the client raised.
import fs from "node:fs";
import OpenAI from "openai";

const { url, key, calls } = JSON.parse(fs.readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });

async function outcome({ method, file, given }) {
  const path = method.split(".");
  const owner = path.slice(0, -1).reduce((one, name) => one[name], client);
  const asked = file ? { file: fs.createReadStream(file), ...given } : given;
  try {
    const found = await owner[path.at(-1)](asked);
    if (!given?.stream && !found?.iterPages) return { value: found };
    const items = [];
    for await (const item of found) items.push(item);
    return { items };
  } catch (error) {
    const { status, code, param, type, message } = error;
    return { error: error.constructor.name, status, code, param, type, message };
  }
}

const found = [];
for (const call of calls) found.push(await outcome(call));
console.log(JSON.stringify(found));
