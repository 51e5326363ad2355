// node-redis against Bridle, in RESP2 and RESP3.
const assert = require('assert');
const { createClient, RESP_TYPES, WatchError } = require('redis');
const { host, port, tlsPort, ca, password, run } = require('./kit.js');

const client = (RESP, socket = { host, port }, options = {}) => createClient({ socket, password, RESP, ...options });

// A test with its own connection, on empty tables.
const using = (test, ...options) => async () => {
  const redis = await client(...options).on('error', (error) => console.log(`connection: ${error}`)).connect();
  try {
    await redis.flushAll();
    await test(redis);
  } finally {
    redis.destroy();
  }
};

async function strings(redis) {
  assert.equal(await redis.set('k', 'v'), 'OK');
  assert.equal(await redis.get('k'), 'v');
  assert.equal(await redis.get('none'), null);
  assert.equal(await redis.set('k', 'w', { NX: true }), null);
  assert.equal(await redis.incrBy('n', 7), 7);
  assert.equal(await redis.incrByFloat('f', 0.5), '0.5');
  assert.deepEqual(await redis.mGet(['k', 'none', 'n']), ['v', null, '7']);
  assert.equal(await redis.expire('k', 100), 1);
  assert.ok((await redis.ttl('k')) > 90);
  await assert.rejects(redis.hGet('n', 'a'), /WRONGTYPE/);
  const every = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
  await redis.set(every, every);
  const raw = redis.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  assert.ok(every.equals(await raw.get(every)));
}

async function hashes(redis) {
  assert.equal(await redis.hSet('h', { a: 1, b: 2 }), 2);
  assert.deepEqual({ ...(await redis.hGetAll('h')) }, { a: '1', b: '2' });
  assert.equal(await redis.hIncrBy('h', 'a', 4), 5);
  assert.deepEqual(await redis.hExpire('h', 'a', 100), [1]);
  assert.deepEqual(await redis.hmGet('h', ['a', 'none']), ['5', null]);
}

async function pipelines(redis) {
  const calls = Array.from({ length: 1000 }, (_, n) => [redis.set(`p:${n}`, String(n)), redis.get(`p:${n}`)]).flat();
  const replies = await Promise.all(calls);
  replies.forEach((reply, at) => assert.equal(reply, at % 2 ? String((at - 1) / 2) : 'OK'));
}

async function transactions(redis) {
  assert.deepEqual(await redis.multi().set('a', '1').incr('a').exec(), ['OK', 2]);
  const other = await client(2).connect();
  await redis.watch('a');
  await other.set('a', '10');
  await assert.rejects(redis.multi().set('a', '3').exec(), WatchError);
  assert.equal(await redis.get('a'), '10');
  other.destroy();
}

async function scans(redis) {
  for (let n = 0; n < 500; n += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, at) => redis.set(`s:${n + at}`, 'v')));
    await redis.hSet('h', Array.from({ length: 100 }, (_, at) => [`f:${n + at}`, 'v']));
  }
  const keys = new Set();
  for await (const page of redis.scanIterator({ MATCH: 's:*', COUNT: 50 })) [page].flat().forEach((key) => keys.add(key));
  assert.equal(keys.size, 500);
  const fields = new Set();
  for await (const page of redis.hScanIterator('h', { COUNT: 50 })) [page].flat().forEach(({ field }) => fields.add(field));
  assert.equal(fields.size, 500);
}

async function describes(redis) {
  assert.match(await redis.info('server'), /redis_version:7/);
  assert.ok((await redis.commandCount()) > 100);
  const me = await redis.clientInfo();
  assert.equal(me.libName, 'node-redis');
}

async function blob(redis) {
  await redis.set('k', 'v'.repeat(1_000_000));
  assert.equal((await redis.get('k')).length, 1_000_000);
}

const tests = [2, 3].flatMap((RESP) => [
  [`strings in RESP${RESP}`, using(strings, RESP)],
  [`hashes in RESP${RESP}`, using(hashes, RESP)],
  [`pipelines in RESP${RESP}`, using(pipelines, RESP)],
  [`transactions in RESP${RESP}`, using(transactions, RESP)],
  [`iterators of SCAN and HSCAN in RESP${RESP}`, using(scans, RESP)],
  [`INFO, COMMAND and CLIENT in RESP${RESP}`, using(describes, RESP)],
  [`TLS in RESP${RESP}`, using(blob, RESP, { host, port: tlsPort, tls: true, ca, servername: 'localhost' })],
  [`another database in RESP${RESP}`, using(strings, RESP, { host, port }, { database: 3 })],
]);

run(tests);
