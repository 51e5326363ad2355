//! redis-rs works with Bridle as with Redis: blocking and asynchronous, in RESP2 and
//! RESP3.

use std::collections::{BTreeSet, HashMap};

use integration::Server;
use redis::{
    AsyncCommands, Client, Commands, Connection, ErrorKind, ExpireOption, RedisResult,
    ServerErrorKind, pipe,
};

const PASSWORD: &str = "secret";

/// A server with a password, and a client of each protocol version.
fn server() -> (Server, Vec<Client>) {
    let server = Server::builder()
        .flag("durability", "os")
        .config(&format!("[proxy]\nrequirepass = \"{PASSWORD}\""))
        .start();
    let clients = ["resp2", "resp3"].map(|protocol| {
        let url = format!("redis://:{PASSWORD}@127.0.0.1:{}/0?protocol={protocol}", server.port);
        Client::open(url).expect("a fine URL")
    });
    (server, clients.into())
}

/// Runs a test with a connection of each protocol version, each on empty tables.
fn each(test: impl Fn(&mut Connection, &Client) -> RedisResult<()>) {
    let (_server, clients) = server();
    for client in clients {
        let mut connection = client.get_connection().expect("a live server");
        let _: () = connection.flushall().expect("a live server");
        test(&mut connection, &client).expect("every command is answered");
    }
}

#[test]
fn strings_and_hashes_are_read_as_they_were_written() {
    each(|redis, _| {
        let _: () = redis.set("k", b"\0\xffv")?;
        assert_eq!(redis.get::<_, Vec<u8>>("k")?, b"\0\xffv");
        assert_eq!(redis.get::<_, Option<String>>("none")?, None);
        assert_eq!(redis.incr::<_, _, i64>("n", 7)?, 7);
        assert_eq!(redis.incr::<_, _, f64>("n", 0.5)?, 7.5);
        assert_eq!(redis.mget::<_, Vec<Option<f64>>>(&["n", "none"])?, [Some(7.5), None]);
        let _: () = redis.hset_multiple("h", &[("a", 1), ("b", 2)])?;
        assert_eq!(
            redis.hgetall::<_, HashMap<String, i64>>("h")?,
            HashMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)])
        );
        assert_eq!(redis.hget::<_, _, Option<i64>>("h", "none")?, None);
        assert!(redis.hexists::<_, _, bool>("h", "a")?);
        let _: () = redis.hexpire("h", 100, ExpireOption::NONE, "a")?;
        assert!((90..=100).contains(&redis.httl::<_, _, Vec<i64>>("h", "a")?[0]));
        assert_eq!(redis.ttl::<_, i64>("h")?, -1);
        assert_eq!(redis.del::<_, u64>(&["k", "h", "none"])?, 2);
        Ok(())
    });
}

#[test]
fn a_refusal_is_an_error_of_its_kind() {
    each(|redis, _| {
        let _: () = redis.set("k", "text")?;
        let error = redis.hget::<_, _, String>("k", "f").expect_err("a string has no fields");
        assert_eq!(error.code(), Some("WRONGTYPE"));
        let error = redis.incr::<_, _, i64>("k", 1).expect_err("text is no number");
        assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError));
        Ok(())
    });
}

#[test]
fn pipelines_are_answered_in_order() {
    each(|redis, _| {
        let mut pipeline = pipe();
        for n in 0..1000 {
            pipeline.set(n, n).ignore().get(n);
        }
        assert_eq!(pipeline.query::<Vec<i64>>(redis)?, (0..1000).collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn a_transaction_is_retried_until_it_succeeds() {
    each(|redis, client| {
        let add = |redis: &mut Connection| -> RedisResult<()> {
            redis::transaction(redis, &["sum"], |redis, pipeline| {
                let sum: Option<u64> = redis.get("sum")?;
                pipeline
                    .set("sum", sum.unwrap_or(0) + 1)
                    .ignore()
                    .get("sum")
                    .query::<Option<(u64,)>>(redis)
            })?;
            Ok(())
        };
        std::thread::scope(|scope| {
            let adders: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        client
                            .get_connection()
                            .and_then(|mut mine| (0..25).try_for_each(|_| add(&mut mine)))
                    })
                })
                .collect();
            adders.into_iter().try_for_each(|adder| adder.join().expect("no panic"))
        })?;
        assert_eq!(redis.get::<_, u64>("sum")?, 100);
        Ok(())
    });
}

#[test]
fn iterators_see_everything() {
    each(|redis, _| {
        let names: BTreeSet<String> = (0..500).map(|n| format!("name:{n}")).collect();
        let mut pipeline = pipe();
        names.iter().for_each(|name| {
            pipeline.set(name, 1).ignore().hset("h", name, 1).ignore();
        });
        let _: () = pipeline.query(redis)?;
        let keys: BTreeSet<String> =
            redis.scan_match::<_, String>("name:*")?.collect::<RedisResult<_>>()?;
        assert_eq!(keys, names);
        let fields: BTreeSet<String> = redis
            .hscan::<_, (String, u8)>("h")?
            .map(|pair| Ok(pair?.0))
            .collect::<RedisResult<_>>()?;
        assert_eq!(fields, names);
        Ok(())
    });
}

#[test]
fn one_multiplexed_connection_serves_many_tasks() {
    let (_server, clients) = server();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for client in clients {
        runtime.block_on(async {
            let mut redis = client.get_multiplexed_async_connection().await.expect("a live server");
            let _: () = redis.flushall().await.expect("a live server");
            let tasks: Vec<_> = (0..20)
                .map(|me: u32| {
                    let mut redis = redis.clone();
                    tokio::spawn(async move {
                        for n in 0..100_u32 {
                            let key = format!("{me}:{n}");
                            let _: () = redis.set(&key, n).await?;
                            assert_eq!(redis.get::<_, u32>(&key).await?, n);
                            let _: u64 = redis.incr("all", 1).await?;
                        }
                        pipe()
                            .atomic()
                            .set(me, 1)
                            .incr(me, 1)
                            .query_async::<((), u64)>(&mut redis)
                            .await
                    })
                })
                .collect();
            for task in tasks {
                assert_eq!(
                    task.await.expect("no panic").expect("every command is answered"),
                    ((), 2)
                );
            }
            assert_eq!(redis.get::<_, u64>("all").await.expect("a live server"), 2000);
        });
    }
}

#[test]
fn a_wrong_password_is_told() {
    let (server, _) = server();
    // redis-rs replaces the error of AUTH, and returns that of HELLO.
    for (protocol, words) in [("resp2", "Password authentication failed"), ("resp3", "WRONGPASS")] {
        let client =
            Client::open(format!("redis://:wrong@127.0.0.1:{}/?protocol={protocol}", server.port))
                .expect("a fine URL");
        let error = client.get_connection().map(|_| ()).expect_err("the password is wrong");
        assert!(error.to_string().contains(words), "{error}");
    }
}
