"""redis-py with its default settings, at a proxy of a cluster whose leaders are killed. Started by integration/tests/failover_clients.rs.

Works for BRIDLE_SECONDS, checks every answer, and prints what it saw as one line of JSON. Reads may not fail at all, and writes only with an
unknown outcome: their keys are left alone, and read at the end.
"""

import json
import os
import sys
import time

import redis

SECONDS = float(os.environ["BRIDLE_SECONDS"])

r = redis.Redis(host="127.0.0.1", port=int(os.environ["BRIDLE_PORT"]), decode_responses=True)
seen = {"client": "redis-py " + redis.__version__, "calls": 0, "unknown": 0, "wrong": [], "longest_ms": 0}
# Rows whose last write is of unknown outcome, and their count before it.
left = []


def wrong(what):
    seen["wrong"].append(what)
    if len(seen["wrong"]) > 20:
        finish()


def finish():
    print(json.dumps(seen))
    sys.exit(0)


class Unknown(Exception):
    pass


def call(what, function, writes=True):
    """The reply. Anything but the documented errors is recorded; a write of unknown outcome is an exception."""
    began = time.monotonic()
    seen["calls"] += 1
    try:
        return function()
    except redis.RedisError as error:
        if writes and str(error).startswith("UNKNOWNOUTCOME"):
            seen["unknown"] += 1
        else:
            wrong(f"{what}: {type(error).__name__}: {error}")
        raise Unknown from error
    finally:
        seen["longest_ms"] = max(seen["longest_ms"], round((time.monotonic() - began) * 1000))


def expect(what, found, expected):
    if found != expected:
        wrong(f"{what} is {found!r}, not {expected!r}")


def pipelined(key, n):
    with r.pipeline(transaction=True) as pipeline:
        return pipeline.hset(key, "n", n).hincrby(key, "times", 1).hget(key, "n").execute()


def main():
    end = time.monotonic() + SECONDS
    generation = 0
    while time.monotonic() < end:
        generation += 1
        names = {kind: f"py:{kind}:{generation}" for kind in ["counter", "string", "hash"]}
        for n in range(1, 200):
            if time.monotonic() >= end:
                break
            try:
                kind = "counter"
                expect("INCR", call("INCR", lambda: r.incr(names["counter"])), n)
                kind = "string"
                expect("SET", call("SET", lambda: r.set(names["string"], n)), True)
                kind = "hash"
                expect("EXEC", call("EXEC", lambda: pipelined(names["hash"], n))[1:], [n, str(n)])
            except Unknown:
                left.append((kind, names[kind], n - 1))
                break
            try:
                kind = "string"
                expect("GET", call("GET", lambda: r.get(names["string"]), False), str(n))
                expect("MGET", call("MGET", lambda: r.mget(names["counter"], names["string"]), False), [str(n), str(n)])
                expect("HGETALL", call("HGETALL", lambda: r.hgetall(names["hash"]), False), {"n": str(n), "times": str(n)})
            except Unknown:
                pass
            time.sleep(0.002)
    for kind, name, done in left:
        try:
            if kind == "hash":
                found = call("HGET", lambda: r.hget(name, "times"), False)
            else:
                found = call("GET", lambda: r.get(name), False)
        except Unknown:
            continue
        if int(found or 0) not in (done, done + 1):
            wrong(f"{name}: {done} were acknowledged, one more was tried, {found} were done")
    finish()


main()
