// ioredis with its default settings, at a proxy of a cluster whose leaders are killed. Started by integration/tests/failover_clients.rs.
//
// Runs for BRIDLE_SECONDS, checks every reply, and prints its results as one line of JSON. No read may fail, and writes only
// with an unknown outcome: their keys are not used again, and are read at the end.
const assert = require('assert');
const Redis = require('ioredis');
const { version } = require('ioredis/package.json');

const redis = new Redis(Number(process.env.BRIDLE_PORT), '127.0.0.1');
const end = Date.now() + Number(process.env.BRIDLE_SECONDS) * 1000;
const seen = { client: `ioredis ${version}`, calls: 0, unknown: 0, wrong: [], longest_ms: 0 };
// Rows whose last write is of unknown outcome, and their count before it.
const left = [];
// ioredis reconnects automatically; the calls report what was lost.
redis.on('error', (error) => wrong(`connection: ${error.message}`));

function finish() {
  console.log(JSON.stringify(seen));
  process.exit(0);
}

function wrong(what) {
  seen.wrong.push(what);
  if (seen.wrong.length > 20) finish();
}

class Unknown extends Error {}

// The reply. Anything but the documented errors is recorded; a write of unknown outcome is an exception.
async function call(what, promise, writes) {
  const began = Date.now();
  seen.calls += 1;
  try {
    return await promise;
  } catch (error) {
    if (writes && error.message.startsWith('UNKNOWNOUTCOME')) seen.unknown += 1;
    else wrong(`${what}: ${error.message}`);
    throw new Unknown();
  } finally {
    seen.longest_ms = Math.max(seen.longest_ms, Date.now() - began);
  }
}

function expect(what, found, expected) {
  try {
    assert.deepEqual(found, expected);
  } catch {
    wrong(`${what} is ${JSON.stringify(found)}, not ${JSON.stringify(expected)}`);
  }
}

async function transaction(key, n) {
  const replies = await redis.multi().hset(key, 'n', n).hincrby(key, 'times', 1).hget(key, 'n').exec();
  const failed = replies.find(([error]) => error);
  if (failed) throw failed[0];
  return replies.map(([, reply]) => reply).slice(1);
}

async function round(names, n) {
  let kind = 'counter';
  try {
    expect('INCR', await call('INCR', redis.incr(names.counter), true), n);
    kind = 'string';
    expect('SET', await call('SET', redis.set(names.string, n), true), 'OK');
    kind = 'hash';
    expect('EXEC', await call('EXEC', transaction(names.hash, n), true), [n, String(n)]);
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
    left.push([kind, names[kind], n - 1]);
    return false;
  }
  try {
    expect('GET', await call('GET', redis.get(names.string), false), String(n));
    expect('MGET', await call('MGET', redis.mget(names.counter, names.string), false), [String(n), String(n)]);
    expect('HGETALL', await call('HGETALL', redis.hgetall(names.hash), false), { n: String(n), times: String(n) });
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
  }
  await new Promise((resolve) => setTimeout(resolve, 2));
  return true;
}

async function main() {
  for (let generation = 1; Date.now() < end; generation += 1) {
    const name = (kind) => `node:${kind}:${generation}`;
    const names = { counter: name('counter'), string: name('string'), hash: name('hash') };
    for (let n = 1; n < 200 && Date.now() < end && (await round(names, n)); n += 1);
  }
  for (const [kind, name, done] of left) {
    const reading = kind === 'hash' ? redis.hget(name, 'times') : redis.get(name);
    const found = Number((await call('GET', reading, false)) || 0);
    if (found !== done && found !== done + 1) wrong(`${name}: ${done} were acknowledged, one more was tried, ${found} were done`);
  }
  finish();
}

main().catch((error) => {
  wrong(error.stack);
  finish();
});
