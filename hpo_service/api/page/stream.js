// The events of one study, as they come, resumed where they broke off.

import { Refused, headers } from "./calls.js";

const SILENCE = 40_000; // the server says something every 15 seconds
const LONGEST_PAUSE = 10_000;

/**
 * Follows a study from a revision on, until stop() is called.
 * told({kind, data}) for each event; state("live" | "cut" | "refused", error) as the connection comes and goes.
 */
export function follow(path, revision, told, state) {
  let last = revision;
  let stopped = false;
  let current = null;

  async function run() {
    let pause = 1000;
    while (!stopped) {
      try {
        await read(() => { pause = 1000; });
      } catch (error) {
        if (stopped) return;
        if (error instanceof Refused) { state("refused", error); return; }
      }
      if (stopped) return;
      state("cut");
      await new Promise((done) => setTimeout(done, pause));
      pause = Math.min(pause * 2, LONGEST_PAUSE);
    }
  }

  async function read(alive) {
    current = new AbortController();
    const given = headers({ Accept: "text/event-stream", "Last-Event-ID": String(last) });
    const answer = await fetch(path, { headers: given, signal: current.signal, cache: "no-store" });
    if ([401, 403, 404].includes(answer.status)) throw new Refused(answer.status, await answer.json());
    if (!answer.ok) throw new Error(String(answer.status));
    state("live");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let silence = null;
    const listen = () => {
      clearTimeout(silence);
      silence = setTimeout(() => current.abort(), SILENCE);
    };
    try {
      for (;;) {
        listen();
        const { value, done } = await reader.read();
        if (done) return;
        alive();
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) take(part);
      }
    } finally {
      clearTimeout(silence);
    }
  }

  function take(part) {
    let kind = "message";
    let data = "";
    let id = null;
    for (const line of part.split("\n")) {
      const [name, ...words] = line.split(": ");
      const value = words.join(": ");
      if (name === "event") kind = value;
      else if (name === "data") data += value;
      else if (name === "id") id = Number(value);
    }
    if (data) told({ kind, data: JSON.parse(data) });
    if (id !== null) last = id;
  }

  run();
  return {
    stop() {
      stopped = true;
      current?.abort();
      return last;
    },
  };
}
