//! `bridle admin` on the command line: every subcommand, as text and as JSON, with and
//! without a password, and its errors.

use std::path::PathBuf;

use integration::{CommandOutput, Server, ServerBuilder, Value, bridle, within};
use serde_json::json;

fn small() -> ServerBuilder {
    Server::builder().flag("set", "raft_log.segment_size=1MiB").flag("durability", "os")
}

/// The cells of a printed table.
fn rows(output: &CommandOutput) -> Vec<Vec<&str>> {
    assert!(output.success, "{}", output.error);
    output.out.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn every_subcommand_answers_in_text() {
    let server = small().start();
    assert!(server.admin(&["tables"]).out.starts_with("no tables yet"));
    let made = server.admin(&["create", "users", "--partitions", "2", "--env", "default_ttl=600"]);
    let made = rows(&made);
    assert_eq!(
        made[0],
        [
            "ID",
            "NUMBER",
            "NAME",
            "STATUS",
            "PARTITIONS",
            "REPLICAS",
            "ROWS",
            "EXPIRING",
            "DISK",
            "MEMTABLES",
            "ENVS"
        ]
    );
    assert_eq!(
        (&made[1][..8], made[1].last()),
        (&["1", "16", "users", "ready", "2", "1", "0", "0"][..], Some(&"default_ttl=600"))
    );
    let mut client = server.client();
    client.run("SELECT users");
    client.run("MSET a 1 b 2 c 3");
    let listed = server.admin(&["tables"]);
    assert_eq!(rows(&listed)[1][..8], ["1", "16", "users", "ready", "2", "1", "3", "3"]);

    assert_eq!(
        rows(&server.admin(&["env", "get", "users"])),
        [["ENV", "VALUE"], ["default_ttl", "600"]]
    );
    assert_eq!(
        rows(&server.admin(&["env", "set", "users", "default_ttl", "60"])),
        [["ENV", "VALUE"], ["default_ttl", "60"]]
    );
    assert_eq!(server.admin(&["env", "get", "users", "default_ttl"]).out, "60\n");
    assert_eq!(server.admin(&["env", "del", "users", "default_ttl"]).out, "none set\n");
    assert!(server.admin(&["env", "get", "users", "default_ttl"]).error.contains("is not set"));

    assert!(
        server
            .admin(&["compact", "users", "--progress"])
            .out
            .starts_with("no compaction was asked for")
    );
    let done = server.admin(&["compact", "users", "--wait"]);
    assert!(done.out.starts_with("done in ") && done.out.contains("2 of 2 partitions"), "{done:?}");
    assert!(server.admin(&["compact", "users", "--progress"]).out.starts_with("done in "));
    let status = server.admin(&["status"]).out;
    for line in [
        "status      ready, up 0d 00:0",
        "cluster     bridle (",
        "durability  os",
        "tables      1 with 2 partitions",
    ] {
        assert!(
            status.lines().any(|other| other.starts_with(line)),
            "{line} is missing in:\n{status}"
        );
    }
    assert!(server.admin(&["drop", "users"]).out.starts_with("users is dropped"));
    within(10, "it is gone", || server.admin(&["tables"]).out.starts_with("no tables yet"));
}

#[test]
fn every_subcommand_answers_in_json() {
    let server = small().start();
    assert_eq!(server.admin_json(&["tables"]), json!([]));
    let made = server.admin_json(&["create", "users", "--partitions", "2"]);
    assert_eq!(
        (&made["name"], &made["number"], &made["partitions"]),
        (&json!("users"), &json!(16), &json!(2))
    );
    assert_eq!((&made["envs"], &made["faults"]), (&json!({}), &json!({})));
    let mut client = server.client();
    client.run("SELECT users");
    client.run("SET a 1 EX 100");
    let one = &server.admin_json(&["tables"])[0];
    assert_eq!(
        (&one["rows"], &one["expiring"], &one["status"]),
        (&json!(1), &json!(1), &json!("ready"))
    );
    assert_eq!(
        server.admin_json(&["env", "set", "users", "default_ttl", "60"]),
        json!({"default_ttl": "60"})
    );
    assert_eq!(server.admin_json(&["env", "get", "users"]), json!({"default_ttl": "60"}));
    assert_eq!(server.admin_json(&["env", "get", "users", "default_ttl"]), json!({"value": "60"}));
    assert_eq!(server.admin_json(&["env", "del", "users", "default_ttl"]), json!({}));
    assert_eq!(server.admin_json(&["compact", "users", "--progress"])["status"], "none");
    let node = &server.admin_json(&["nodes"])[0];
    let figure = |name: &str| node[name].as_u64().unwrap_or_else(|| panic!("{name} in {node}"));
    assert!(
        figure("disk_free_bytes") > 1 << 20
            && figure("disk_total_bytes") > figure("disk_free_bytes"),
        "{node}"
    );
    assert!(figure("memory_bytes") > 1 << 20 && figure("connections") == 1, "{node}");
    let started = server.admin_json(&["compact", "users"]);
    assert!(
        ["running", "done"].contains(&started["status"].as_str().expect("a word")),
        "{started}"
    );
    within(20, "the compaction ends", || {
        server.admin_json(&["compact", "users", "--progress"])["status"] == "done"
    });
    let done = server.admin_json(&["compact", "users", "--progress"]);
    assert_eq!((&done["partitions"], &done["partitions_done"]), (&json!(2), &json!(2)));
    let status = server.admin_json(&["status"]);
    assert_eq!(
        (&status["ready"], &status["tables"], &status["durability"], &status["faults"]),
        (&json!(true), &json!(1), &json!("os"), &json!([]))
    );
    assert!(status["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    assert_eq!(server.admin_json(&["drop", "users"])["status"], "dropping");
}

#[test]
fn invalid_requests_fail_with_a_reason_and_an_exit_code() {
    let server = small().start();
    assert!(server.admin(&["create", "users"]).success);
    let cases: &[(&[&str], &str)] = &[
        (&["create", "users"], "table 'users' exists"),
        (&["create", "12"], "a table's name is"),
        (&["create", "x", "--env", "default_ttl"], "expected key=value"),
        (&["create", "x", "--env", "default_ttl=soon"], "'soon' is not a value of default_ttl"),
        (&["drop", "nobody"], "no such table 'nobody'"),
        (&["compact", "nobody"], "no such table 'nobody'"),
        (&["compact", "nobody", "--wait"], "no such table 'nobody'"),
        (&["env", "get", "nobody"], "no such table 'nobody'"),
        (
            &["env", "set", "users", "default_tll", "1"],
            "no such env 'default_tll'; there are: default_ttl",
        ),
        (&["env", "set", "users", "default_ttl", "0"], "'0' is not a value of default_ttl"),
        (&["env", "del", "users", "color"], "no such env 'color'"),
    ];
    for (words, why) in cases {
        for json in [false, true] {
            let output = if json {
                server.admin(&[&["--json"], *words].concat())
            } else {
                server.admin(words)
            };
            assert!(!output.success && output.out.is_empty(), "{words:?}: {output:?}");
            assert!(
                output.error.starts_with("bridle: ") && output.error.contains(why),
                "{words:?}: {}",
                output.error
            );
        }
    }
    assert!(!server.admin(&["explode"]).success);
    assert_eq!(server.admin_json(&["tables"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_password_guards_every_subcommand() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| -> String {
        let path: PathBuf = dir.path().join(name);
        std::fs::write(&path, text).expect("write a password file");
        path.display().to_string()
    };
    let (right, wrong) = (file("right", "open sesame\n"), file("wrong", "open barley\n"));
    let server = small().flag("password-file", &right).start();
    let mut client = server.client();
    assert!(client.run("SET a 1").text().starts_with("NOAUTH"));
    assert_eq!(client.call(&["AUTH", "open sesame"]).expect("alive"), Value::ok());
    assert_eq!(client.run("SET a 1"), Value::ok());
    let all: &[&[&str]] = &[
        &["status"],
        &["tables"],
        &["create", "x"],
        &["drop", "db0"],
        &["env", "get", "db0"],
        &["env", "set", "db0", "default_ttl", "1"],
        &["env", "del", "db0", "default_ttl"],
        &["compact", "db0"],
    ];
    for words in all {
        for with in [vec![], vec!["--password-file", &wrong]] {
            let output = server.admin(&[with.as_slice(), *words].concat());
            assert!(
                !output.success && output.out.is_empty() && output.error.contains("password"),
                "{with:?} {words:?}: {output:?}"
            );
        }
    }
    assert_eq!(client.run("GET a"), Value::bulk("1"), "nothing was dropped");
    for words in all.iter().filter(|words| words[0] != "drop") {
        let output = server.admin(&[&["--password-file", &right], *words].concat());
        assert!(output.success, "{words:?}: {output:?}");
    }
    assert!(!server.admin(&["--password-file", "/no/such/file", "status"]).success);
    for output in [server.output(), server.page("/metrics").1, client.run("CONFIG GET *").text()] {
        assert!(!output.contains("sesame"), "the password is shown");
    }
}

#[test]
fn a_wrong_address_is_named() {
    let server = small().start();
    let free_port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let output = bridle(&["admin", "--url", &format!("http://127.0.0.1:{free_port}"), "status"]);
    assert!(
        !output.success
            && output.error.contains(&free_port.to_string())
            && output.error.contains("--url"),
        "{output:?}"
    );
    // The port for Redis clients is the likely mistake.
    let output =
        bridle(&["admin", "--url", &format!("http://127.0.0.1:{}", server.port), "status"]);
    assert!(!output.success && output.error.contains(&server.port.to_string()), "{output:?}");
    assert_eq!(server.client().run("PING"), Value::Status("PONG".into()));
}

/// CONFIG REWRITE keeps the comments of the file, and the new values hold after a
/// restart.
#[test]
fn config_rewrite_keeps_comments_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("mine.toml");
    let before = "# Ours since 2019.\n[proxy]\n# The load balancer knows this.\nmaxclients = 50 # \
                  few\n\n[log]\nlevel = \"info\"\n";
    std::fs::write(&config, before).expect("write the configuration");
    let mut server = small().flag("config", config.display()).start();
    let mut client = server.client();
    assert_eq!(client.run("CONFIG SET maxclients 60 timeout 90"), Value::ok());
    assert_eq!(client.run("CONFIG REWRITE"), Value::ok());
    let after = std::fs::read_to_string(&config).expect("the file is there");
    for kept in [
        "# Ours since 2019.\n",
        "# The load balancer knows this.\n",
        "maxclients = 60 # few\n",
        "timeout = \"90s\"\n",
        "[log]\nlevel = \"info\"\n",
    ] {
        assert!(after.contains(kept), "{kept:?} is missing in:\n{after}");
    }
    server.restart();
    let mut client = server.client();
    let pair = |name: &str, value: &str| Value::Array(vec![Value::bulk(name), Value::bulk(value)]);
    assert_eq!(client.run("CONFIG GET maxclients"), pair("maxclients", "60"));
    assert_eq!(client.run("CONFIG GET timeout"), pair("timeout", "90"));
    // Without a configuration file there is nothing to rewrite.
    assert!(small().start().client().run("CONFIG REWRITE").is_error());
}
