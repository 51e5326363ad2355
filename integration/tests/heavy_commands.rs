//! Commands that compute or scan for a long time delay only the client that sent them,
//! although all clients share one thread.

use std::time::{Duration, Instant};

use integration::{Client, Server, Value};

/// Before these commands had threads of their own, others waited for seconds. A machine
/// that runs several tests has delays of its own, so two waits may be somewhat longer.
const WAIT_MAX: Duration = Duration::from_millis(50);
const LONGEST_WAIT_MAX: Duration = Duration::from_millis(500);

/// The waits of a client that sends PING while another one is busy, longest first.
fn waits_while(server: &Server, busy: impl FnOnce(&mut Client) + Send) -> Vec<Duration> {
    let (mut pings, mut client) = (server.client(), server.client());
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| busy(&mut client));
        while !busy.is_finished() {
            let asked = Instant::now();
            assert_eq!(pings.run("PING"), Value::Status("PONG".into()));
            waits.push(asked.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    waits.sort_unstable_by(|one, two| two.cmp(one));
    waits
}

fn check(server: &Server, what: &str, busy: impl FnOnce(&mut Client) + Send) {
    let waits = waits_while(server, busy);
    let (longest, third) = (waits.first(), waits.get(2));
    let are_short = longest.is_none_or(|wait| *wait < LONGEST_WAIT_MAX)
        && third.is_none_or(|wait| *wait < WAIT_MAX);
    assert!(are_short, "{what}: others waited {:?}", &waits[..waits.len().min(5)]);
}

fn pipeline(client: &mut Client, commands: &[Vec<Vec<u8>>]) {
    for reply in client.pipeline(commands).expect("the server lives") {
        assert!(!reply.is_error(), "{}", reply.text());
    }
}

fn words(words: &[&[u8]]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.to_vec()).collect()
}

#[test]
fn heavy_commands_do_not_delay_other_clients() {
    // The test measures time. On a fast machine, five payloads of 8 MiB sent at the same
    // time exceed for a moment the 64 MiB that all clients may hold with the kit's small
    // memory, and their client is rightly disconnected.
    let server = Server::builder()
        .flag("durability", "os")
        .flag("set", "threads.proxy=1")
        .flag("set", "proxy.maxmemory_clients=256MiB")
        .start();
    let mut client = server.client();
    let one: Vec<u8> = (0..4000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let two: Vec<u8> = one.iter().rev().copied().collect();
    let keys =
        (0..8u8).map(|n| words(&[b"SET", &[&[b'0' + n], &b"a".repeat(60_000)[..]].concat(), b"v"]));
    let hash = (0..20).map(|chunk| {
        let fields = (chunk * 1000..chunk * 1000 + 1000)
            .flat_map(|n| [format!("field:{n}").into_bytes(), b"value".to_vec()]);
        words(&[b"HSET", b"hash"]).into_iter().chain(fields).collect::<Vec<_>>()
    });
    let setup = [
        words(&[b"SET", b"one", &one]),
        words(&[b"SET", b"two", &two]),
        words(&[b"SET", b"large", &b"xy".repeat(4 << 20)]),
    ];
    pipeline(&mut client, &setup.into_iter().chain(keys).chain(hash).collect::<Vec<_>>());
    let Value::Bulk(payload) = client.run("DUMP large") else { panic!("a payload") };

    check(&server, "LCS", |client| {
        pipeline(client, &vec![words(&[b"LCS", b"one", b"two", b"LEN"]); 100])
    });
    check(&server, "LCS in a transaction", |client| {
        let commands = [
            vec![words(&[b"MULTI"])],
            vec![words(&[b"LCS", b"one", b"two"]); 40],
            vec![words(&[b"EXEC"])],
        ]
        .concat();
        pipeline(client, &commands);
    });
    let pattern = [b"*", &b"a".repeat(30_000)[..], b">b"].concat();
    check(&server, "SCAN", |client| {
        pipeline(client, &[words(&[b"SCAN", b"0", b"MATCH", &pattern, b"COUNT", b"1000"])])
    });
    check(&server, "KEYS", |client| {
        pipeline(client, &[words(&[b"KEYS", &pattern]), words(&[b"KEYS", &b"*a".repeat(20_000)])])
    });
    check(&server, "whole hashes", |client| {
        pipeline(client, &vec![words(&[b"HGETALL", b"hash"]); 10])
    });
    check(&server, "many fields at random", |client| {
        pipeline(client, &vec![words(&[b"HRANDFIELD", b"hash", b"-20000"]); 10])
    });
    check(&server, "a hash's size", |client| {
        pipeline(client, &vec![words(&[b"MEMORY", b"USAGE", b"hash", b"SAMPLES", b"0"]); 20])
    });
    check(&server, "a writing transaction that reads whole hashes", |client| {
        // It reads much and returns little: this client is slow with long replies.
        let reads =
            vec![
                words(&[b"HRANGECOUNT", b"hash", b"-", b"+", b"MATCH", b"ANYWHERE", b"nothing"]);
                50
            ];
        pipeline(
            client,
            &[
                vec![words(&[b"MULTI"]), words(&[b"SET", b"x", b"1"])],
                reads,
                vec![words(&[b"EXEC"])],
            ]
            .concat(),
        );
    });
    check(&server, "documentation", |client| {
        let many: Vec<&[u8]> = [&b"COMMAND"[..], b"DOCS"]
            .into_iter()
            .chain(std::iter::repeat_n(&b"set"[..], 2000))
            .collect();
        pipeline(client, &[vec![words(&[b"COMMAND", b"DOCS"]); 50], vec![words(&many)]].concat());
    });
    check(&server, "many patterns", |client| {
        let many: Vec<&[u8]> = [&b"CONFIG"[..], b"GET"]
            .into_iter()
            .chain(std::iter::repeat_n(&b"*x*y*"[..], 50_000))
            .collect();
        pipeline(client, &[words(&many)]);
    });
    check(&server, "DUMP", |client| pipeline(client, &vec![words(&[b"DUMP", b"large"]); 10]));
    check(&server, "RESTORE", |client| {
        pipeline(client, &vec![words(&[b"RESTORE", b"copy", b"0", &payload, b"REPLACE"]); 5])
    });
    check(&server, "a search in a long value", |client| {
        let check = [
            &b"HCHECKSET"[..],
            b"haystack",
            b"f",
            b"MATCH",
            b"ANYWHERE",
            &[&b"a".repeat(1 << 20)[..], b"b"].concat(),
            b"f",
            b"v",
        ];
        pipeline(
            client,
            &[words(&[b"HSET", b"haystack", b"f", &b"a".repeat(4 << 20)]), words(&check)],
        );
    });
}
