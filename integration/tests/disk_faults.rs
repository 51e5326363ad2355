//! Faults at the operator's level: a damaged log, a damaged partition, an unusable port,
//! directory or configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use integration::cluster::Cluster;
use integration::{Client, CommandOutput, Server, Value, binary, bridle, files, within};

/// Number of keys written before each fault of the log.
const KEYS: usize = 200;

/// A server with a small log, so that reading its files is fast.
fn small() -> integration::ServerBuilder {
    Server::builder().flag("set", "raft_log.segment_size=1MiB")
}

fn value(n: usize) -> String {
    format!("the-value-of-key-{n:05}-is-this")
}

/// Writes the keys one by one and kills the server, so that all are in the log only.
/// Returns the log's file and its bytes.
fn written_and_killed(server: &mut Server) -> (PathBuf, Vec<u8>) {
    let mut client = server.client();
    for n in 0..KEYS {
        assert_eq!(client.run(&format!("SET key:{n} {}", value(n))), Value::ok());
    }
    server.kill();
    let last = value(KEYS - 1);
    let logs = files(&server.dir().join("log"));
    let holds =
        |path: &PathBuf| position(&std::fs::read(path).expect("read the log"), &last).is_some();
    let log = logs.into_iter().find(holds).expect("the last write is in the log");
    let bytes = std::fs::read(&log).expect("read the log");
    (log, bytes)
}

fn position(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

/// Offset of a key's value in the log.
fn place(bytes: &[u8], n: usize) -> usize {
    position(bytes, &value(n)).expect("the log has every write")
}

/// The directory of a partition: the numbers of its table, of the partition, and of its
/// replica, which may be any.
fn partition(server: &Server, prefix: &str) -> PathBuf {
    let tables =
        std::fs::read_dir(server.dir().join("tables")).expect("the partitions' directories");
    let mut paths = tables.map(|entry| entry.expect("an entry").path());
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    paths.find(is_it).expect("the partition has a directory")
}

/// Damages the largest table file below a directory.
fn damage_largest_table(directory: &Path) {
    let tables = files(directory);
    let tables =
        tables.iter().filter(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let largest = tables
        .max_by_key(|path| path.metadata().map_or(0, |meta| meta.len()))
        .expect("a stop flushes to table files");
    let mut bytes = std::fs::read(largest).expect("read the table file");
    let middle = bytes.len() / 3;
    bytes[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(largest, bytes).expect("damage the table file");
}

/// The number after `before` in a text.
fn number_after(text: &str, before: &str) -> usize {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in: {text}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number after {before:?} in: {text}"))
}

/// A flipped byte in a record before the last one stops the start, and the files stay
/// untouched.
#[test]
fn a_corrupt_log_record_is_refused_by_file_and_offset() {
    let mut server = small().start();
    let (log, whole) = written_and_killed(&mut server);
    let flipped = place(&whole, 50) + 7;
    let mut damaged = whole.clone();
    damaged[flipped] ^= 0x01;
    std::fs::write(&log, &damaged).expect("damage the log");

    let mut refused = small().dir(server.dir()).spawn();
    assert!(!refused.wait().success(), "a damaged log was served");
    let output = refused.output();
    let line = output
        .lines()
        .find(|line| line.contains("damaged"))
        .unwrap_or_else(|| panic!("nothing is said of the damage:\n{output}"));
    assert!(line.contains(&log.display().to_string()), "{line}");
    let offset = number_after(line, "at byte ");
    assert!(
        place(&whole, 49) < offset && offset < flipped,
        "byte {flipped} was flipped, and byte {offset} is named: {line}"
    );
    assert!(!output.contains("panicked"), "{output}");
    assert_eq!(std::fs::read(&log).expect("read the log"), damaged, "the damaged file was changed");

    std::fs::write(&log, &whole).expect("repair the log");
    server.restart();
    let mut client = server.client();
    assert_eq!(client.run("DBSIZE"), Value::Int(KEYS as i64));
    assert_eq!(client.run("GET key:50"), Value::bulk(&value(50)));
}

/// All records before it are kept.
#[test]
fn a_torn_last_record_is_truncated_with_a_warning() {
    let mut server = small().start();
    let (log, mut bytes) = written_and_killed(&mut server);
    let (before, last) = (place(&bytes, KEYS - 2), place(&bytes, KEYS - 1));
    bytes[last + 5..].fill(0);
    std::fs::write(&log, &bytes).expect("tear the log");
    server.restart();
    let output = server.output();
    let line = output
        .lines()
        .find(|line| line.contains("torn"))
        .unwrap_or_else(|| panic!("nothing is said of the torn tail:\n{output}"));
    assert!(line.contains("WARN") && line.contains(&log.display().to_string()), "{line}");
    let offset = number_after(line, "offset=");
    assert!(
        before < offset && offset < last,
        "the record around byte {last} was torn, and byte {offset} is named: {line}"
    );
    let mut client = server.client();
    for n in 0..KEYS - 1 {
        assert_eq!(client.run(&format!("GET key:{n}")), Value::bulk(&value(n)));
    }
    assert_eq!(client.run(&format!("GET key:{}", KEYS - 1)), Value::Nil);
    // The log continues where it was truncated.
    assert_eq!(client.run("SET after cut"), Value::ok());
    let warnings = output.matches("torn").count();
    server.restart();
    assert_eq!(server.client().run("GET after"), Value::bulk("cut"));
    assert_eq!(server.output().matches("torn").count(), warnings, "cut once is cut");
}

#[test]
fn a_damaged_partition_is_reported_and_other_tables_serve() {
    let mut server = small().start();
    let mut client = server.client();
    for table in 0..3 {
        client.run(&format!("SELECT {table}"));
        assert_eq!(client.run(&format!("SET key {table}")), Value::ok());
    }
    assert!(server.stop().success());
    let manifest = files(&partition(&server, "2-0-"))
        .into_iter()
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("MANIFEST"))
        })
        .expect("every RocksDB has a manifest");
    let whole = std::fs::read(&manifest).expect("read the manifest");
    std::fs::write(&manifest, vec![0x5a; whole.len()]).expect("damage the manifest");

    server.restart();
    let mut client = server.client();
    for table in [0, 2] {
        client.run(&format!("SELECT {table}"));
        assert_eq!(client.run("GET key"), Value::bulk(&table.to_string()));
        assert_eq!(client.run("INCR served"), Value::Int(1));
    }
    client.run("SELECT 1");
    for command in ["GET key", "SET key 2", "DBSIZE", "SCAN 0", "FLUSHDB"] {
        let reply = client.run(command);
        assert!(reply.is_error(), "{command} on a damaged table: {reply:?}");
    }
    assert_eq!(client.run("PING"), Value::Status("PONG".into()));
    let faults = server.admin_json(&["status"])["faults"].to_string();
    assert!(faults.contains("db1"), "{faults}");
    assert!(
        server.admin(&["tables"]).out.contains("db1 partition 0: "),
        "{:?}",
        server.admin(&["tables"])
    );
    assert!(!server.output().contains("panicked"), "{}", server.output());

    assert!(server.stop().success());
    std::fs::write(&manifest, whole).expect("repair the manifest");
    server.restart();
    let mut client = server.client();
    client.run("SELECT 1");
    assert_eq!(client.run("GET key"), Value::bulk("1"), "nothing of it was lost meanwhile");
}

/// The status names the damaged partition, which accepts no writes.
#[test]
fn damage_found_at_runtime_is_reported_and_stops_writes() {
    let mut server = small().start();
    let mut client = server.client();
    for n in 0..2000 {
        client.run(&format!("SET key:{n} {}", "x".repeat(100)));
    }
    client.run("SELECT 1");
    client.run("SET other 1");
    assert!(server.stop().success());
    damage_largest_table(&partition(&server, "1-0-"));

    server.restart();
    let mut client = server.client();
    assert!(
        (0..2000).any(|n| client.run(&format!("GET key:{n}")).is_error()),
        "the damage was not noticed"
    );
    let reply = client.run("SET key:0 new");
    assert!(reply.text().starts_with("ERR storage fault: "), "{reply:?}");
    // A full disk would be MISCONF, for clients and in the statistics.
    let errors = client.run("INFO errorstats");
    assert!(
        errors.text().contains("errorstat_ERR:") && !errors.text().contains("errorstat_MISCONF:"),
        "{errors:?}"
    );
    let output = server.output();
    let stopped = output.lines().find(|line| line.contains("replica stopped"));
    assert!(
        stopped.is_some_and(
            |line| line.contains("kind=\"damaged\"") && line.contains("is_damaged=true")
        ),
        "{stopped:?}"
    );
    let (ready, why) = server.page("/health/ready");
    assert!(ready == 503 && why.contains("db0 partition 0: "), "{ready} {why}");
    assert!(server.admin_json(&["status"])["faults"].to_string().contains("db0 partition 0: "));
    client.run("SELECT 1");
    assert_eq!(client.run("INCR other"), Value::Int(2));
}

/// The replica is rebuilt from its leader.
#[test]
fn a_damaged_replica_is_rebuilt_without_client_errors() {
    let mut cluster = Cluster::builder().partitions(1).start();
    let mut client = cluster.client(0).expect("it serves");
    for n in 0..2000 {
        assert_eq!(client.run(&format!("SET key:{n} {n}-{}", "x".repeat(100))), Value::ok());
    }
    let bad = cluster.leaders("db0").expect("the admin API answers")[0].expect("there is a leader");
    cluster.stop(bad);
    damage_largest_table(&cluster.data(bad).join("tables"));
    cluster.launch(bad);
    let lead_there = |cluster: &Cluster| {
        let leads = || cluster.leaders("db0").is_ok_and(|leaders| leaders == [Some(bad)]);
        within(20, "it leads", || leads() || cluster.transfer("db0", 0, bad).is_ok() && leads());
    };
    lead_there(&cluster);
    let mut clients: Vec<Client> =
        (0..3).map(|number| cluster.client(number).expect("it serves")).collect();
    let mut all_is_well = |round: usize| {
        for n in 0..2000 {
            let client = &mut clients[n % 3];
            assert_eq!(
                client.run(&format!("GET key:{n}")),
                Value::bulk(&format!("{n}-{}", "x".repeat(100)))
            );
            if n % 20 == 0 {
                assert_eq!(client.run(&format!("SET round:{n} {round}")), Value::ok());
            }
        }
    };
    all_is_well(1);
    let tables = cluster.data(bad).join("tables");
    let is_kept = || {
        std::fs::read_dir(&tables).expect("stores").any(|entry| {
            entry.expect("an entry").path().extension().is_some_and(|e| e == "damaged")
        })
    };
    within(20, "the damaged store is moved aside", is_kept);
    within(20, "all three run and lack nothing", || {
        let partitions = cluster.ask("GET", "/v1/tables/db0/partitions", None).unwrap_or_default();
        let members = partitions[0]["members"].as_array().cloned().unwrap_or_default();
        members.iter().filter(|member| member["state"] == "running" && member["lag"] == 0).count()
            == 3
    });
    lead_there(&cluster);
    all_is_well(2);
    assert_eq!(
        cluster.leaders("db0").expect("the admin API answers"),
        [Some(bad)],
        "it has everything, and reads it"
    );
}

/// The output of a start that must fail.
fn refused(words: &[&str]) -> String {
    let CommandOutput { success, out, error } = bridle(&[&["standalone"], words].concat());
    assert!(!success && out.is_empty(), "{words:?} was not refused: {out}");
    assert_eq!(
        error.lines().filter(|line| line.starts_with("bridle: ")).count(),
        1,
        "one line says why: {error}"
    );
    error
}

#[test]
fn a_taken_port_is_named_and_its_server_is_undisturbed() {
    let (server, dir) = (small().start(), tempfile::tempdir().expect("a directory"));
    let (port, http_port) = (server.port.to_string(), server.http_port.to_string());
    let data = dir.path().join("data").display().to_string();
    let error = refused(&["--port", &port, "--http-port", "0", "--data", &data]);
    assert!(
        error.contains(&format!("port {port} "))
            && error.contains("--port")
            && error.contains("in use"),
        "{error}"
    );
    let error = refused(&["--port", "0", "--http-port", &http_port, "--data", &data]);
    assert!(
        error.contains(&format!("port {http_port} "))
            && error.contains("--http-port")
            && error.contains("in use"),
        "{error}"
    );
    assert_eq!(server.client().run("PING"), Value::Status("PONG".into()));
    // The directory of the failed starts is not locked any more.
    let other = small().dir(&dir.path().join("data")).start();
    assert_eq!(other.client().run("PING"), Value::Status("PONG".into()));
}

/// The start fails before it creates anything.
#[test]
fn an_invalid_configuration_is_refused_with_its_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, data) = (dir.path().join("my.toml"), dir.path().join("data"));
    let (path, data_path) = (file.display().to_string(), data.display().to_string());
    let cases = [
        ("[proxy]\nport = 7000\n\nmaxclient = 5\n", "line 4", "maxclient"),
        ("[storag]\n", "line 1", "storag"),
        ("[storage]\ndurability = \"sometimes\"\n", "line 2", "sometimes"),
        ("# sizes\n[storage]\nmemtables = \"much\"\n", "line 3", "much"),
        ("[raft_log]\nsegment_size = -1\n", "line 2", "raft_log.segment_size"),
        ("[proxy]\nport 7000\n", "line 2", ""),
    ];
    for (text, line, what) in cases {
        std::fs::write(&file, text).expect("write the configuration");
        let error =
            refused(&["--config", &path, "--port", "0", "--http-port", "0", "--data", &data_path]);
        assert!(
            error.contains(&path) && error.contains(line) && error.contains(what),
            "{text}: {error}"
        );
    }
    assert!(!data.exists(), "a refused start made a directory");
}

#[test]
fn a_directory_of_another_format_is_refused_untouched() {
    let mut server = small().start();
    server.client().run("SET key value");
    assert!(server.stop().success());
    let identity = server.dir().join("IDENTITY");
    let ours = std::fs::read_to_string(&identity).expect("every directory says whose it is");
    let newer = ours.replace("format = 3", "format = 4\nlayout = \"unheard of\"");
    let older = ours.replace("format = 3", "format = 1");
    for (other, number) in [(newer, "format 4"), (older, "format 1")] {
        assert_ne!(ours, other);
        std::fs::write(&identity, &other).expect("write another identity");
        let before = files(server.dir());
        let error = refused(&[
            "--port",
            "0",
            "--http-port",
            "0",
            "--data",
            &server.dir().display().to_string(),
        ]);
        assert!(error.contains(number) && error.contains("format 3 only"), "{error}");
        assert_eq!(
            (files(server.dir()), std::fs::read_to_string(&identity).expect("still there")),
            (before, other)
        );
    }
    std::fs::write(&identity, ours).expect("write our identity");
    server.restart();
    assert_eq!(server.client().run("GET key"), Value::bulk("value"));
}

#[test]
fn a_stop_during_the_start_is_obeyed_and_harmless() {
    let mut server = small().start();
    let mut client = server.client();
    for n in 0..2000 {
        client.run(&format!("SET key:{n} {}", value(n)));
    }
    server.kill();
    let port = server.port.to_string();
    for _ in 0..3 {
        let mut child = Command::new(binary())
            .args([
                "standalone",
                "--set",
                "raft_log.segment_size=1MiB",
                "--port",
                &port,
                "--http-port",
                "0",
                "--data",
            ])
            .arg(server.dir())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the binary starts");
        // The port is open from the start on, long before the data.
        integration::within(30, "the port is bound", || Client::connect(server.port).is_ok());
        Command::new("kill")
            .args(["-s", "TERM", &child.id().to_string()])
            .status()
            .expect("kill is part of every system");
        assert!(child.wait().is_ok());
    }
    server.restart();
    assert_eq!(server.client().run("DBSIZE"), Value::Int(2000));
}
