// ioredis against Bridle.
const assert = require('assert');
const Redis = require('ioredis');
const { host, port, tlsPort, ca, password, run } = require('./kit.js');

const connect = (options = {}) => new Redis({ host, port, password, maxRetriesPerRequest: 1, ...options });

// A test with its own connection, on empty tables.
const using = (test, options) => async () => {
  const redis = connect(options);
  try {
    await redis.flushall();
    await test(redis);
  } finally {
    redis.disconnect();
  }
};

async function strings(redis) {
  assert.equal(await redis.set('k', 'v'), 'OK');
  assert.equal(await redis.get('k'), 'v');
  assert.equal(await redis.get('none'), null);
  assert.equal(await redis.set('k', 'w', 'EX', 100, 'NX'), null);
  assert.equal(await redis.incrby('n', 7), 7);
  assert.deepEqual(await redis.mget('k', 'none', 'n'), ['v', null, '7']);
  assert.equal(await redis.del('k', 'none'), 1);
  await assert.rejects(redis.hget('n', 'a'), /WRONGTYPE/);
  const every = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
  await redis.set(every, every);
  assert.ok(every.equals(await redis.getBuffer(every)));
}

async function hashes(redis) {
  assert.equal(await redis.hset('h', { a: 1, b: 2 }), 2);
  assert.deepEqual(await redis.hgetall('h'), { a: '1', b: '2' });
  assert.equal(await redis.hincrby('h', 'a', 4), 5);
  assert.deepEqual(await redis.call('HEXPIRE', 'h', 100, 'FIELDS', 1, 'a'), [1]);
  assert.deepEqual(await redis.hmget('h', 'a', 'none'), ['5', null]);
}

async function pipelines(redis) {
  const pipeline = redis.pipeline();
  for (let n = 0; n < 1000; n += 1) pipeline.set(`p:${n}`, n).get(`p:${n}`);
  const replies = await pipeline.exec();
  assert.equal(replies.length, 2000);
  replies.forEach(([error, reply], at) => {
    assert.equal(error, null);
    assert.equal(reply, at % 2 ? String((at - 1) / 2) : 'OK');
  });
}

async function transactions(redis) {
  assert.deepEqual(await redis.multi().set('a', 1).incr('a').exec(), [[null, 'OK'], [null, 2]]);
  const other = connect();
  await redis.watch('a');
  await other.set('a', 10);
  assert.equal(await redis.multi().set('a', 3).exec(), null);
  assert.equal(await redis.get('a'), '10');
  other.disconnect();
}

async function scans(redis) {
  const pipeline = redis.pipeline();
  for (let n = 0; n < 500; n += 1) pipeline.set(`s:${n}`, n).hset('h', `f:${n}`, n);
  await pipeline.exec();
  const keys = new Set();
  for await (const page of redis.scanStream({ match: 's:*', count: 50 })) page.forEach((key) => keys.add(key));
  assert.equal(keys.size, 500);
  const fields = new Set();
  for await (const page of redis.hscanStream('h', { count: 50 })) page.forEach((one, at) => at % 2 || fields.add(one));
  assert.equal(fields.size, 500);
}

async function reconnects(redis) {
  const id = await redis.client('ID');
  const other = connect();
  const back = new Promise((resolve) => redis.once('ready', resolve));
  assert.equal(await other.client('KILL', 'ID', id), 1);
  await back;
  assert.equal(await redis.ping(), 'PONG');
  other.disconnect();
}

async function blob(redis) {
  await redis.set('k', Buffer.alloc(1_000_000, 'v'));
  assert.equal((await redis.get('k')).length, 1_000_000);
}

run([
  ['strings', using(strings)],
  ['hashes', using(hashes)],
  ['pipelines', using(pipelines)],
  ['pipelines that ioredis makes by itself', using(pipelines, { enableAutoPipelining: true })],
  ['transactions', using(transactions)],
  ['streams of SCAN and HSCAN', using(scans)],
  ['a connection that is killed comes back', using(reconnects)],
  ['TLS', using(blob, { port: tlsPort, tls: { ca, servername: 'localhost' } })],
  ['another database', using(strings, { db: 3 })],
]);
