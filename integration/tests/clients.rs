//! Redis's own tools, redis-py, ioredis and node-redis work with Bridle as with Redis.
//! (redis-rs: `redis_rs.rs`.)
//!
//! The tools come from the system (`deploy/setup.sh test`), the libraries from their
//! registries; these stay in the target directory, so that a second run needs no network.

mod external;

use std::path::Path;

use external::{Certificates, free_port, node, output, programs, redis_py, run, run_in};
use integration::{Server, Value};

const PASSWORD: &str = "correct horse";

/// Runs redis-cli against a server, with arguments and lines on its standard input.
fn redis_cli(server: &Server, words: &[&str], input: &str) -> String {
    let port = server.port.to_string();
    output("redis-cli", &[&["-p", &port], words].concat(), input)
}

/// Command lines of the libraries' programs, for a server with a password and TLS.
fn library(dir: &Path, program: &Path, words: &[&str]) {
    let (certificates, tls_port) = (Certificates::new(), free_port());
    let config =
        format!("[proxy]\nrequirepass = \"{PASSWORD}\"\n{}", certificates.section(tls_port));
    let server = Server::builder().flag("durability", "os").config(&config).start();
    let env = [
        ("BRIDLE_PORT", server.port.to_string()),
        ("BRIDLE_TLS_PORT", tls_port.to_string()),
        ("BRIDLE_CA", certificates.text("ca.pem")),
        ("BRIDLE_PASSWORD", PASSWORD.to_owned()),
    ];
    let ended = run_in(dir, program, words, &env, "");
    assert!(
        ended.success,
        "{} {words:?}:\n{}\nthe server said:\n{}",
        program.display(),
        ended.output,
        server.output()
    );
}

#[test]
fn redis_cli_reads_commands_and_shows_replies() {
    let server = Server::start();
    let lines = "SET a 1\nINCR a\nHSET h f 1 g 2\nHGETALL h\nGET none\nLPUSH a 1\nHGET a \
                 f\nMULTI\nSET b \"x y\\x00\"\nEXEC\nGET b\n3 INCR a\n";
    let shown = redis_cli(&server, &["--no-raw"], lines);
    let expected = [
        "OK",
        "(integer) 2",
        "(integer) 2",
        "1) \"f\"\n2) \"1\"\n3) \"g\"\n4) \"2\"",
        "(nil)",
        "(error) ERR unknown command 'LPUSH', with args beginning with: 'a' '1' ",
        "(error) WRONGTYPE Operation against a key holding the wrong kind of value",
        "OK\nQUEUED\n1) OK",
        "\"x y\\x00\"",
        "(integer) 3\n(integer) 4\n(integer) 5",
    ];
    let squeezed =
        |text: &str| text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    assert_eq!(squeezed(&shown), squeezed(&expected.join("\n")));
}

#[test]
fn redis_cli_shows_maps_in_resp3() {
    let server = Server::start();
    redis_cli(&server, &["HSET", "h", "f", "1"], "");
    assert_eq!(
        redis_cli(&server, &["-3", "--no-raw", "HGETALL", "h"], "").trim(),
        "1# \"f\" => \"1\""
    );
    assert_eq!(redis_cli(&server, &["--json", "HGETALL", "h"], "").trim(), r#"{"f":"1"}"#);
}

#[test]
fn redis_cli_takes_its_help_and_hints_from_the_server() {
    let server = Server::start();
    // HEXPIRE is younger than the Redis 7.0 whose redis-cli may run here: its help can
    // only come from COMMAND DOCS.
    let help = redis_cli(&server, &[], "HELP HEXPIRE\nHELP SET\n");
    for word in ["HEXPIRE", "numfields", "field [field ...]", "[NX|XX|GT|LT]", "KEEPTTL", "since:"]
    {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
}

#[test]
fn redis_cli_walks_all_keys() {
    let server = Server::start();
    let lines: String = (1..=300).map(|n| format!("SET key:{n} {}\n", "v".repeat(n))).collect();
    let loaded = redis_cli(&server, &["--pipe"], &lines.replace('\n', "\r\n"));
    assert!(loaded.contains("errors: 0, replies: 300"), "{loaded}");
    redis_cli(&server, &["HSET", "big", "a", "1", "b", "2"], "");
    let mut keys: Vec<String> = redis_cli(&server, &["--scan", "--pattern", "key:*"], "")
        .lines()
        .map(str::to_owned)
        .collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 300);
    let sizes = redis_cli(&server, &["--bigkeys"], "");
    for word in [
        "Sampled 301 keys",
        "Biggest string found '\"key:300\"' has 300 bytes",
        "Biggest   hash found '\"big\"' has 2 fields",
    ] {
        assert!(sizes.contains(word), "{word} is not in\n{sizes}");
    }
    let sizes = redis_cli(&server, &["--memkeys"], "");
    assert!(
        sizes.contains("Sampled 301 keys") && sizes.contains("Biggest string found '\"key:300\"'"),
        "{sizes}"
    );
}

#[test]
fn redis_cli_watches_the_server() {
    let server = Server::start();
    assert!(
        redis_cli(&server, &["--latency", "-i", "1", "--raw"], "").split_whitespace().count() >= 4
    );
    assert!(redis_cli(&server, &["INFO", "server"], "").contains("bridle"));
}

#[test]
fn redis_benchmark_runs_plain_pipelined_and_in_resp3() {
    let server = Server::builder().flag("durability", "os").start();
    let port = server.port.to_string();
    for how in [&["-P", "1"][..], &["-P", "16"], &["-P", "16", "-3"]] {
        let tests = "ping_inline,ping_mbulk,set,get,incr,hset,mset";
        let words = [&["-p", &port, "-n", "20000", "-r", "1000", "-q", "-t", tests], how].concat();
        let ended = run("redis-benchmark", &words, "");
        assert!(ended.success, "{how:?}: {}", ended.output);
        let lines: Vec<&str> = ended.output.split(['\r', '\n']).collect();
        assert!(
            !lines
                .iter()
                .any(|line| line.to_lowercase().contains("error") || line.contains("WARN")),
            "{how:?}: {}",
            ended.output
        );
        assert_eq!(
            lines.iter().filter(|line| line.contains("requests per second")).count(),
            7,
            "{how:?}: {}",
            ended.output
        );
    }
    let mut client = server.client();
    // Three runs of 20,000 INCRs of 1,000 counters; all are counted.
    let counters = (0..1000).map(|n| client.run(&format!("GET counter:{n:012}")));
    let sum: u64 = counters
        .map(|value| if value == Value::Nil { 0 } else { value.text().parse().expect("a counter") })
        .sum();
    assert_eq!(sum, 60_000);
}

#[test]
fn redis_py_finds_a_redis() {
    let python = redis_py();
    library(&programs("redis_py"), &python, &["-B", "clients.py"]);
}

#[test]
fn ioredis_and_node_redis_find_a_redis() {
    let home = node(&["kit.js", "ioredis.js", "node_redis.js"]);
    for program in ["ioredis.js", "node_redis.js"] {
        library(&home, Path::new("node"), &[program]);
    }
}
