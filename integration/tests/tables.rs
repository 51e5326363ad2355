//! Tables as operators and clients see them: create, select, partitions, envs, drop.

use std::collections::BTreeSet;

use integration::{CROSSSLOT, Client, Server, ServerBuilder, Value, within};

fn small() -> ServerBuilder {
    Server::builder().flag("set", "raft_log.segment_size=1MiB").flag("durability", "os")
}

/// The names of the tables, sorted.
fn names(server: &Server) -> Vec<String> {
    let tables = server.admin_json(&["tables"]);
    let list = tables.as_array().expect("a list");
    list.iter().map(|table| table["name"].as_str().expect("a name").to_owned()).collect()
}

fn words(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Array(items) => items.iter().map(Value::text).collect(),
        other => panic!("not a list: {other:?}"),
    }
}

/// All keys returned by SCAN, each at least once.
fn scan(client: &mut Client) -> BTreeSet<String> {
    let (mut found, mut cursor) = (BTreeSet::new(), "0".to_owned());
    loop {
        let Value::Array(page) = client.run(&format!("SCAN {cursor} COUNT 50")) else {
            panic!("not a page")
        };
        cursor = page[0].text();
        found.extend(words(&page[1]));
        if cursor == "0" {
            return found;
        }
    }
}

/// All sixteen databases are created by their first write and exist after a restart.
#[test]
fn databases_appear_on_first_write_and_survive_a_restart() {
    let mut server = small().start();
    let mut client = server.client();
    for db in 0..16 {
        assert_eq!(client.run(&format!("SELECT {db}")), Value::ok());
        for read in [
            "GET key",
            "HGETALL key",
            "EXISTS key",
            "DBSIZE",
            "SCAN 0",
            "KEYS *",
            "RANDOMKEY",
            "TTL key",
        ] {
            assert!(!client.run(read).is_error(), "{read} in an empty database");
        }
    }
    assert_eq!(names(&server), Vec::<String>::new(), "reading makes no tables");
    for db in (0..16).rev() {
        client.run(&format!("SELECT {db}"));
        assert_eq!(client.run(&format!("SET key {db}")), Value::ok());
    }
    let all: BTreeSet<String> = (0..16).map(|db| format!("db{db}")).collect();
    assert_eq!(names(&server).into_iter().collect::<BTreeSet<_>>(), all);
    server.restart();
    let mut client = server.client();
    for db in 0..16 {
        client.run(&format!("SELECT {db}"));
        assert_eq!(client.run("GET key"), Value::bulk(&db.to_string()));
        assert_eq!(client.run("DBSIZE"), Value::Int(1));
    }
    assert_eq!(client.run("SELECT 16"), Value::Error("ERR DB index is out of range".into()));
    assert_eq!(client.run("FLUSHALL"), Value::ok());
    for db in 0..16 {
        client.run(&format!("SELECT {db}"));
        assert_eq!(client.run("DBSIZE"), Value::Int(0));
    }
}

#[test]
fn a_table_is_chosen_by_name_and_bad_names_are_refused() {
    let mut server = small().start();
    let mut client = server.client();
    assert!(server.admin(&["create", "users:v2.eu_west-1"]).success);
    assert!(client.run("SELECT nobody").is_error(), "a name that was not created");
    assert_eq!(client.run("SELECT users:v2.eu_west-1"), Value::ok());
    client.run("SET key here");
    client.run("SELECT 0");
    assert_eq!(client.run("GET key"), Value::Nil);
    let long = "n".repeat(1000);
    for bad in ["", "7", "16", "a b", "a/b", "../../etc", "naïve", "a\nb", &long] {
        let output = server.admin(&["create", bad]);
        assert!(
            !output.success && output.error.contains("a table's name is"),
            "{bad:?}: {} {}",
            output.out,
            output.error
        );
    }
    for partitions in ["0", "1025", "-1", "many"] {
        assert!(
            !server.admin(&["create", "fine", "--partitions", partitions]).success,
            "{partitions}"
        );
    }
    assert_eq!(names(&server), ["users:v2.eu_west-1"]);
    server.restart();
    let mut client = server.client();
    assert_eq!(client.run("SELECT users:v2.eu_west-1"), Value::ok());
    assert_eq!(client.run("GET key"), Value::bulk("here"));
}

#[test]
fn commands_on_many_keys_work_over_the_partitions_of_a_table() {
    let mut server = small().flag("set", "tables.partitions=4").start();
    let mut client = server.client();
    let keys: Vec<String> = (0..400).map(|n| format!("key:{n}")).collect();
    let pairs: Vec<&str> = keys.iter().flat_map(|key| [key.as_str(), key.as_str()]).collect();
    assert_eq!(client.call(&[&["MSET"], pairs.as_slice()].concat()).expect("alive"), Value::ok());
    let all: BTreeSet<String> = keys.iter().cloned().collect();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    for round in 0..2 {
        let found =
            client.call(&[&["MGET"], names.as_slice(), &["missing"]].concat()).expect("alive");
        let Value::Array(found) = found else { panic!("{found:?}") };
        let in_order: Vec<Value> =
            keys.iter().map(|key| Value::bulk(key)).chain([Value::Nil]).collect();
        assert_eq!(found, in_order);
        assert_eq!(client.run("DBSIZE"), Value::Int(400));
        assert_eq!(scan(&mut client), all);
        assert_eq!(words(&client.run("KEYS *")), all);
        assert_eq!(
            client.call(&[&["EXISTS"], names.as_slice()].concat()).expect("alive"),
            Value::Int(400)
        );
        assert!(all.contains(&client.run("RANDOMKEY").text()));
        if round == 0 {
            server.restart();
            client = server.client();
        }
    }
    let partitions = server.admin_json(&["tables"])[0]["partitions"].clone();
    assert_eq!(
        (partitions, std::fs::read_dir(server.dir().join("tables")).expect("stores").count()),
        (4.into(), 4)
    );
    assert_eq!(client.call(&[&["DEL"], &names[..100]].concat()).expect("alive"), Value::Int(100));
    assert_eq!(
        client.call(&[&["UNLINK"], &names[..200]].concat()).expect("alive"),
        Value::Int(100)
    );
    assert_eq!(client.run("DBSIZE"), Value::Int(200));
    assert_eq!(client.run("FLUSHDB"), Value::ok());
    assert_eq!((client.run("DBSIZE"), scan(&mut client).len()), (Value::Int(0), 0));
}

/// Two keys of different partitions: with four partitions, three of four keys are in
/// another one than the first.
fn apart(client: &mut Client) -> (String, String) {
    let mut refused = |key: &String| {
        client.run("SET one 1");
        client.run(&format!("RENAME one {key}")).text().starts_with("CROSSSLOT")
    };
    let other = (0..30).map(|n| format!("other{n}")).find(|key| refused(key));
    ("one".to_owned(), other.expect("one of thirty lies apart"))
}

/// Commands that must be atomic are refused over partitions, and work with a hash tag.
#[test]
fn atomic_commands_need_a_hash_tag_over_partitions() {
    let server = small().flag("set", "tables.partitions=4").start();
    let mut client = server.client();
    let (one, other) = apart(&mut client);
    client.run(&format!("MSET {one} 1 {other} 2"));
    let crossslot = Value::Error(CROSSSLOT.into());
    assert_eq!(client.run(&format!("RENAME {one} {other}")), crossslot);
    assert_eq!(client.run(&format!("MSETNX {one} 3 {other} 4")), crossslot);
    client.run("MULTI");
    client.run(&format!("SET {one} 5"));
    client.run(&format!("SET {other} 6"));
    let reply = client.run("EXEC");
    assert!(
        reply.text().contains("CROSSSLOT") || reply.text().starts_with("EXECABORT"),
        "{reply:?}"
    );
    assert_eq!(
        (client.run(&format!("GET {one}")), client.run(&format!("GET {other}"))),
        (Value::bulk("1"), Value::bulk("2"))
    );

    client.run("MULTI");
    client.run("SET {user1}:name anna");
    client.run("HSET {user1}:cart apple 3");
    assert_eq!(client.run("EXEC"), Value::Array(vec![Value::ok(), Value::Int(1)]));
    assert_eq!(client.run("RENAME {user1}:name {user1}:alias"), Value::ok());
    assert_eq!(client.run("MSETNX {user1}:a 1 {user1}:b 2"), Value::Int(1));
    assert_eq!(client.run("GET {user1}:alias"), Value::bulk("anna"));
}

fn pttl(client: &mut Client, key: &str) -> i64 {
    client.run(&format!("PTTL {key}")).int()
}

/// The env applies to new writes immediately, and to existing rows from the time it was
/// set.
#[test]
fn default_ttl_applies_to_new_writes_and_existing_rows() {
    let mut server = small().start();
    let mut client = server.client();
    client.run("SET old 1");
    client.run("HSET old-hash field value");
    client.run("SET old-with-its-own 1 EX 1000");
    client.run("SET old-and-kept 1");
    assert!(server.admin(&["env", "set", "db0", "default_ttl", "3"]).success);
    let began = std::time::Instant::now();
    client.run("SET new 1");
    client.run("SET new-with-its-own 1 EX 1000");
    assert!((1..=3000).contains(&pttl(&mut client, "new")), "a new write");
    for old in ["old", "old-hash"] {
        assert!((1..=3000).contains(&pttl(&mut client, old)), "{old}");
    }
    assert_eq!(client.run("PERSIST old-and-kept"), Value::Int(1));
    assert_eq!(client.run("PERSIST new"), Value::Int(1));
    assert_eq!(
        (pttl(&mut client, "old-and-kept"), pttl(&mut client, "new")),
        (-1, -1),
        "PERSIST wins"
    );
    // The env and the time of its change survive a crash.
    server.restart();
    let mut client = server.client();
    for old in ["old", "old-hash"] {
        within(10, "the default TTL ends it", || {
            client.run(&format!("EXISTS {old}")) == Value::Int(0)
        });
    }
    assert!(began.elapsed().as_millis() >= 2900, "too early: {:?}", began.elapsed());
    for key in ["old-and-kept", "new", "old-with-its-own", "new-with-its-own"] {
        assert_eq!(client.run(&format!("EXISTS {key}")), Value::Int(1), "{key}");
    }
    within(10, "the rows themselves go, too", || client.run("DBSIZE") == Value::Int(4));
    assert!(server.admin(&["env", "del", "db0", "default_ttl"]).success);
    client.run("SET later 1");
    assert_eq!(pttl(&mut client, "later"), -1);
}

/// A dropped table's space is reclaimed, and a new table of its name is empty.
#[test]
fn a_dropped_table_frees_its_space_and_its_name() {
    let mut server = small().flag("set", "storage.memtables=4MiB").start();
    assert!(server.admin(&["create", "logs", "--partitions", "2"]).success);
    let mut client = server.client();
    client.run("SELECT logs");
    for n in 0..200u32 {
        // Incompressible.
        let noise: Vec<u8> = (0..50_000u32)
            .map(|i| ((i + n).wrapping_mul(2_654_435_761) >> 13) as u8 ^ (i as u8))
            .collect();
        assert_eq!(
            client.call(&[b"SET", format!("key:{n}").as_bytes(), &noise]).expect("alive"),
            Value::ok()
        );
    }
    let size = |server: &Server| -> u64 {
        integration::files(&server.dir().join("tables"))
            .iter()
            .filter_map(|file| file.metadata().ok())
            .map(|meta| meta.len())
            .sum()
    };
    within(20, "it lies on disk", || size(&server) > 1 << 20);
    let full = size(&server);
    assert!(server.admin(&["drop", "logs"]).success);
    within(20, "the space is given back", || size(&server) < full / 10);
    let late = client.run("SET key:0 late");
    assert_eq!(
        late,
        Value::Error("ERR no such table 'logs'".into()),
        "a client that has it selected does not bring it back"
    );
    assert!(server.admin(&["create", "logs"]).success);
    let mut client = server.client();
    client.run("SELECT logs");
    assert_eq!((client.run("DBSIZE"), client.run("GET key:0")), (Value::Int(0), Value::Nil));
    client.run("SET key:1 new");
    server.restart();
    let mut client = server.client();
    client.run("SELECT logs");
    assert_eq!(
        (client.run("DBSIZE"), client.run("GET key:1")),
        (Value::Int(1), Value::bulk("new"))
    );
}

/// Clients restore only a number when they reconnect.
#[test]
fn a_named_table_has_a_number_for_select() {
    let mut server = small().start();
    let mut client = server.client();
    assert_eq!(client.setting("databases"), "16");
    assert_eq!(client.run("SELECT 16"), Value::Error("ERR DB index is out of range".into()));
    assert_eq!(server.admin_json(&["create", "books"])["number"], 16);
    assert_eq!(server.admin_json(&["create", "films"])["number"], 17);
    assert_eq!(client.setting("databases"), "18");

    assert_eq!(client.run("SET a 0"), Value::ok());
    assert_eq!(client.run("COPY a b DB 17"), Value::Int(1));
    assert_eq!(client.run("MOVE a 17"), Value::Int(1));
    assert_eq!(client.run("SELECT 17"), Value::ok());
    assert_eq!(client.run("MGET a b"), Value::Array(vec![Value::bulk("0"), Value::bulk("0")]));
    let mut by_name = server.client();
    assert_eq!(
        (by_name.run("SELECT films"), by_name.run("GET a")),
        (Value::ok(), Value::bulk("0"))
    );
    assert_eq!(
        (by_name.run("SELECT db17"), by_name.run("GET a")),
        (Value::ok(), Value::bulk("0")),
        "the number's other name"
    );
    let listed = client.run("CLIENT LIST").text();
    assert!(listed.lines().filter(|line| line.contains(" db=17 ")).count() == 2, "{listed}");
    let keyspace = client.run("INFO keyspace").text();
    assert!(keyspace.contains("\r\ndb17:keys=2,expires=0"), "{keyspace}");
    let mut monitor = server.client();
    monitor.run("MONITOR");
    client.run("PING seen");
    let seen = monitor.reply().expect("a line").text();
    assert!(seen.contains(" [17 127.0.0.1:"), "{seen}");

    for (name, why) in [
        ("db17", "stands for a number"),
        ("db99999", "stands for a number"),
        ("17", "not a number"),
    ] {
        let output = server.admin(&["create", name]);
        assert!(!output.success && output.error.contains(why), "{name}: {output:?}");
    }
    assert_eq!(server.admin_json(&["create", "db30"])["number"], 30);
    // A new table of the same name is a different one.
    assert!(server.admin(&["drop", "films"]).success);
    assert_eq!(client.run("SELECT 17"), Value::Error("ERR DB index is out of range".into()));
    assert_eq!(server.admin_json(&["create", "films"])["number"], 31);
    assert_eq!(client.setting("databases"), "32");
    server.stop();
    server.restart();
    let mut client = server.client();
    assert_eq!((client.run("SELECT 31"), client.run("DBSIZE")), (Value::ok(), Value::Int(0)));
    assert_eq!(
        server.admin_json(&["create", "plays"])["number"],
        32,
        "it is kept over a restart what was given"
    );
}
