"""redis-py against Bridle. Started by integration/tests/clients.rs; the environment has the address of the server."""

import asyncio
import os
import threading
import time
import unittest

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST = "127.0.0.1"
PORT = int(os.environ["BRIDLE_PORT"])
TLS_PORT = int(os.environ["BRIDLE_TLS_PORT"])
CA = os.environ["BRIDLE_CA"]
PASSWORD = os.environ["BRIDLE_PASSWORD"]
# For connections that must be refused: no retries.
ONCE = Retry(NoBackoff(), 0)


class Both:
    """Tests that hold in both protocol versions."""

    protocol = None

    def setUp(self):
        self.r = self.connect(decode_responses=True)
        self.r.flushall()

    def tearDown(self):
        self.r.close()

    def connect(self, **options):
        return redis.Redis(host=HOST, port=PORT, password=PASSWORD, protocol=self.protocol, **options)

    def test_strings(self):
        r = self.r
        self.assertTrue(r.set("k", "v"))
        self.assertEqual(r.get("k"), "v")
        self.assertIsNone(r.get("none"))
        self.assertIsNone(r.set("k", "w", nx=True))
        self.assertEqual(r.set("k", "w", get=True), "v")
        self.assertEqual(r.append("k", "xyz"), 4)
        self.assertEqual(r.getrange("k", 1, 2), "xy")
        self.assertEqual(r.setrange("k", 1, "--"), 4)
        self.assertEqual(r.strlen("k"), 4)
        self.assertEqual(r.incr("n"), 1)
        self.assertEqual(r.decrby("n", 5), -4)
        self.assertEqual(r.incrbyfloat("f", 1.5), 1.5)
        self.assertTrue(r.mset({"a": 1, "b": 2}))
        self.assertEqual(r.mget("a", "none", "b"), ["1", None, "2"])
        self.assertEqual(r.getdel("a"), "1")
        self.assertEqual(r.exists("a", "b", "b"), 2)
        self.assertEqual(r.delete("b", "n"), 2)
        self.assertEqual(r.type("k"), "string")

    def test_bytes_of_any_kind(self):
        with self.connect() as raw:
            every = bytes(range(256))
            raw.set(every, every)
            self.assertEqual(raw.get(every), every)
            self.assertEqual(raw.keys(), [every])
            self.assertTrue(raw.set("large", b"\0" * 5_000_000))
            self.assertEqual(len(raw.get("large")), 5_000_000)

    def test_hashes(self):
        r = self.r
        self.assertEqual(r.hset("h", mapping={"a": 1, "b": 2}), 2)
        self.assertEqual(r.hset("h", "a", 3), 0)
        self.assertEqual(r.hget("h", "a"), "3")
        self.assertEqual(r.hgetall("h"), {"a": "3", "b": "2"})
        self.assertEqual(r.hmget("h", "a", "none"), ["3", None])
        self.assertEqual(sorted(r.hkeys("h")), ["a", "b"])
        self.assertEqual(sorted(r.hvals("h")), ["2", "3"])
        self.assertEqual(r.hincrby("h", "a", 4), 7)
        self.assertEqual(r.hincrbyfloat("h", "b", 0.5), 2.5)
        self.assertTrue(r.hexists("h", "a"))
        self.assertEqual(r.hlen("h"), 2)
        self.assertEqual(r.hstrlen("h", "b"), 3)
        self.assertEqual(r.hsetnx("h", "a", 1), 0)
        self.assertIn(r.hrandfield("h"), ["a", "b"])
        self.assertEqual(r.hdel("h", "a", "none"), 1)
        with self.assertRaisesRegex(redis.ResponseError, "WRONGTYPE"):
            r.get("h")

    def test_fields_that_expire(self):
        r = self.r
        r.hset("h", mapping={"a": 1, "b": 2})
        self.assertEqual(r.hexpire("h", 100, "a", "none"), [1, -2])
        self.assertEqual(r.httl("h", "b"), [-1])
        self.assertTrue(90 < r.httl("h", "a")[0] <= 100)
        self.assertEqual(r.hpersist("h", "a"), [1])
        self.assertEqual(r.hpexpire("h", 0, "a"), [2])
        self.assertEqual(r.hgetall("h"), {"b": "2"})

    def test_expiry(self):
        r = self.r
        r.set("k", "v", px=30)
        self.assertTrue(0 < r.pttl("k") <= 30)
        deadline = time.monotonic() + 10
        while r.exists("k"):
            self.assertLess(time.monotonic(), deadline)
        r.set("k", "v", ex=100)
        self.assertTrue(90 < r.ttl("k") <= 100)
        self.assertTrue(r.persist("k"))
        self.assertEqual(r.ttl("k"), -1)
        self.assertEqual(r.ttl("none"), -2)
        at = int(time.time()) + 1000
        self.assertTrue(r.expireat("k", at))
        self.assertEqual(r.expiretime("k"), at)
        self.assertFalse(r.expire("k", 2000, lt=True))
        self.assertEqual(r.getex("k", px=5000), "v")
        self.assertLessEqual(r.pttl("k"), 5000)

    def test_pipelines(self):
        with self.r.pipeline(transaction=False) as pipe:
            for n in range(1000):
                pipe.set(f"p:{n}", n)
            for n in range(1000):
                pipe.get(f"p:{n}")
            replies = pipe.execute()
        self.assertEqual(replies[1000:], [str(n) for n in range(1000)])
        with self.r.pipeline(transaction=False) as pipe:
            replies = pipe.set("s", "text").incr("s").get("s").execute(raise_on_error=False)
        self.assertIsInstance(replies[1], redis.ResponseError)
        self.assertEqual(replies[2], "text")

    def test_a_transaction_that_meets_another_is_tried_again(self):
        """Threads add 1 by GET and SET under WATCH; no addition may be lost."""
        failed = []

        def add(times):
            try:
                with self.connect() as mine:
                    for _ in range(times):
                        mine.transaction(step, "sum")
            except Exception as error:  # a thread's failure fails the test
                failed.append(error)

        def step(pipe):
            before = int(pipe.get("sum") or 0)
            pipe.multi()
            pipe.set("sum", before + 1)

        threads = [threading.Thread(target=add, args=(25,)) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual(failed, [])
        self.assertEqual(self.r.get("sum"), "100")

    def test_a_watched_key_that_another_touches_aborts(self):
        with self.connect() as other, self.r.pipeline() as pipe:
            pipe.watch("w")
            other.set("w", 1)
            pipe.multi()
            pipe.set("w", 2)
            with self.assertRaises(redis.WatchError):
                pipe.execute()
        self.assertEqual(self.r.get("w"), "1")

    def test_iterators_see_everything(self):
        r = self.r
        with r.pipeline(transaction=False) as pipe:
            for n in range(500):
                pipe.set(f"scan:{n}", n)
                pipe.hset("h", f"field:{n}", n)
            pipe.execute()
        self.assertEqual({*r.scan_iter("scan:*", count=50)}, {f"scan:{n}" for n in range(500)})
        self.assertEqual([*r.scan_iter(_type="hash")], ["h"])
        self.assertEqual(dict(r.hscan_iter("h", count=50)), {f"field:{n}": str(n) for n in range(500)})
        self.assertEqual(r.dbsize(), 501)

    def test_databases_are_apart(self):
        with self.connect(db=2, decode_responses=True) as two:
            two.set("k", "two")
            self.assertIsNone(self.r.get("k"))
            self.assertEqual(two.get("k"), "two")

    def test_a_pool_serves_threads(self):
        pool = redis.BlockingConnectionPool(
            host=HOST, port=PORT, password=PASSWORD, protocol=self.protocol, max_connections=4, health_check_interval=1
        )
        shared, failed = redis.Redis(connection_pool=pool), []

        def work():
            try:
                for _ in range(50):
                    shared.incr("pooled")
            except Exception as error:  # as above
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual(failed, [])
        self.assertEqual(shared.get("pooled"), b"400")
        pool.disconnect()

    def test_who_is_connected(self):
        with self.connect(client_name="somebody", decode_responses=True) as named:
            self.assertEqual(named.client_getname(), "somebody")
            me = next(client for client in named.client_list() if client["name"] == "somebody")
            self.assertEqual(me["lib-name"], "redis-py")
            self.assertEqual(me["lib-ver"], redis.__version__)
            self.assertEqual(me["resp"], str(self.protocol))
            self.assertTrue(named.client_setinfo("LIB-NAME", "redis-py(test)"))
            self.assertEqual(named.client_info()["lib-name"], "redis-py(test)")

    def test_the_server_describes_itself(self):
        r = self.r
        self.assertTrue(r.ping())
        self.assertEqual(r.echo("hello"), "hello")
        info = r.info()
        self.assertEqual(info["redis_mode"], "standalone")
        self.assertIn("used_memory", info)
        self.assertEqual(r.config_get("maxclients"), {"maxclients": "10000"})
        self.assertGreater(r.command_count(), 100)
        self.assertEqual(r.command()["get"]["arity"], 2)
        self.assertIsInstance(r.slowlog_get(), list)
        self.assertEqual(r.time()[0], int(r.time()[0]))

    def test_dump_and_restore(self):
        with self.connect() as raw:
            raw.hset("h", "a", "1")
            raw.restore("copy", 0, raw.dump("h"))
            self.assertEqual(raw.hgetall("copy"), {b"a": b"1"})

    def test_a_wrong_password_is_told(self):
        with redis.Redis(host=HOST, port=PORT, password="wrong", protocol=self.protocol, retry=ONCE) as wrong:
            with self.assertRaises(redis.AuthenticationError):
                wrong.ping()
        with redis.Redis(host=HOST, port=PORT, protocol=2, retry=ONCE) as none:
            with self.assertRaises(redis.AuthenticationError):
                none.ping()

    def test_over_tls(self):
        options = dict(host=HOST, port=TLS_PORT, password=PASSWORD, protocol=self.protocol, ssl=True)
        with redis.Redis(ssl_ca_certs=CA, decode_responses=True, **options) as tls:
            tls.set("k", "v" * 1_000_000)
            self.assertEqual(tls.get("k"), "v" * 1_000_000)
        with redis.Redis(retry=ONCE, **options) as suspicious:
            with self.assertRaises(redis.ConnectionError):
                suspicious.ping()

    def test_asynchronous(self):
        async def run():
            async with redis.asyncio.Redis(host=HOST, port=PORT, password=PASSWORD, protocol=self.protocol) as r:
                await asyncio.gather(*(r.incr("async") for _ in range(100)))
                async with r.pipeline(transaction=True) as pipe:
                    replies = await pipe.get("async").hset("h", "a", 1).hgetall("h").execute()
                self.assertEqual(replies, [b"100", 1, {b"a": b"1"}])
                self.assertEqual({key async for key in r.scan_iter()}, {b"async", b"h"})

        asyncio.run(run())


class InRESP2(Both, unittest.TestCase):
    protocol = 2


class InRESP3(Both, unittest.TestCase):
    protocol = 3


if __name__ == "__main__":
    unittest.main()
