// Timers, promises and a worker thread, which go through a chain of numbers and say each. The words: the log, and how many
// milliseconds between two steps.
const fs = require("fs");
const { Worker } = require("worker_threads");

const worker = new Worker(
  `const { parentPort } = require("worker_threads");
   let chain = 1;
   parentPort.on("message", (number) => {
     for (let at = 0; at < 1000; at++) chain = (Math.imul(chain, 1103515245) + 12345) >>> 0;
     parentPort.postMessage([number, chain]);
   });`,
  { eval: true },
);
const log = fs.openSync(process.argv[2], "a");
const pause = Number(process.argv[3]);
let ticks = 0;
setInterval(() => ticks++, 1);
const answered = () => new Promise((answer) => worker.once("message", answer));

async function run() {
  const kept = new Map();
  for (let number = 1; ; number++) {
    const before = ticks;
    const answer = answered();
    worker.postMessage(number);
    const [told, chain] = await answer;
    if (told !== number) throw new Error(`${told} instead of ${number}`);
    kept.set(`key ${number}`, { chain });
    await new Promise((go) => setTimeout(go, pause));
    while (ticks === before) await new Promise((go) => setTimeout(go, 1));
    if (kept.size !== number) throw new Error("something is lost");
    fs.writeSync(log, `${number} ${chain}\n`);
  }
}
run().catch((error) => {
  fs.writeSync(log, `WRONG ${error.stack}\n`);
  process.exit(1);
});
