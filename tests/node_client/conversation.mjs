// The official Node client through a whole conversation with `ftkit serve`; prints what it got as JSON.
//   node conversation.mjs BASE_URL MODEL
import { File } from "node:buffer";
import OpenAI, { toFile } from "openai";

globalThis.File ??= File; // Node 18 has it here alone

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const found = {};

const rows = Array.from({ length: 12 }, (_, i) => ({
  messages: [
    { role: "user", content: `row ${i} says hello` },
    { role: "assistant", content: `ROW ${i} SAYS HELLO` },
  ],
}));
const text = rows.map((row) => JSON.stringify(row) + "\n").join("");
const file = await client.files.create({ file: await toFile(Buffer.from(text), "rows.jsonl"), purpose: "fine-tune" });
found.content = (await (await client.files.content(file.id)).text()) === text;
found.listed = false;
for await (const other of client.files.list({ purpose: "fine-tune" })) found.listed ||= other.id === file.id;

let job = await client.fineTuning.jobs.create({
  model,
  training_file: file.id,
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 3 } } },
  suffix: "node",
  metadata: { from: "node" },
});
while (!["succeeded", "failed"].includes(job.status)) {
  await sleep(0.1);
  job = await client.fineTuning.jobs.retrieve(job.id);
}
found.status = job.status;
found.events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 2 })) found.events.push(event.message);
found.checkpoints = (await client.fineTuning.jobs.checkpoints.list(job.id)).data.map((c) => c.step_number);
const mine = await client.fineTuning.jobs.list({ metadata: { from: "node" } });
found.mine = mine.data.map((other) => other.id === job.id);
const results = await (await client.files.content(job.result_files[0])).text();
found.results = Buffer.from(results, "base64").toString().split("\n")[0];
found.shutdown = (await client.models.retrieve(job.fine_tuned_model)).shutdown_date;

const asked = { model: job.fine_tuned_model, temperature: 0, messages: [{ role: "user", content: "hello there" }] };
found.answer = (await client.chat.completions.create(asked)).choices[0].message.content;
found.streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
  found.streamed += chunk.choices[0].delta.content ?? "";

const line = JSON.stringify({ custom_id: "one", method: "POST", url: "/v1/chat/completions", body: asked });
const input = await client.files.create({ file: await toFile(Buffer.from(line), "batch.jsonl"), purpose: "batch" });
let batch = await client.batches.create({
  input_file_id: input.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
while (!["completed", "failed"].includes(batch.status)) {
  await sleep(0.1);
  batch = await client.batches.retrieve(batch.id);
}
const output = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
found.batched = output.response.body.choices[0].message.content.startsWith("HELLO THERE");

const upload = await client.uploads.create({ bytes: 6, filename: "a", mime_type: "text/jsonl", purpose: "batch" });
const parts = [];
for (const piece of ["abc", "def"])
  parts.push((await client.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(piece), "part") })).id);
const whole = await client.uploads.complete(upload.id, { part_ids: parts });
found.uploaded = await (await client.files.content(whole.file.id)).text();

found.errors = [];
for (const wrong of [
  () => client.chat.completions.create({ ...asked, model: "gpt-9" }),
  () => client.fineTuning.jobs.cancel(job.id),
  () => client.fineTuning.jobs.create({ model, training_file: input.id }),
]) {
  await wrong().catch((error) => found.errors.push([error.constructor.name, error.status, error.code]));
}
found.deleted = (await client.models.delete(job.fine_tuned_model)).deleted;
console.log(JSON.stringify(found));
