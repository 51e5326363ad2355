//! A server from start to stop, at the operator's level: banner, pages, `bridle admin`,
//! signals.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const BRIDLE: &str = env!("CARGO_BIN_EXE_bridle");

struct Server {
    child: Child,
    banner: String,
    port: u16,
    url: String,
}

impl Server {
    fn start(data: &Path, flags: &[&str]) -> Server {
        let mut child = Command::new(BRIDLE)
            .args([
                "standalone",
                "--port",
                "0",
                "--http-port",
                "0",
                "--memory",
                "64MiB",
                "--set",
                "raft_log.segment_size=1MiB",
                "--data",
            ])
            .arg(data)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut banner = String::new();
        for line in &mut lines {
            let last = line.starts_with("Try:");
            banner += &(line + "\n");
            if last {
                break;
            }
        }
        let after = |word: &str| {
            banner
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(word))
                .unwrap_or_else(|| panic!("{banner}"))
                .trim()
                .to_owned()
        };
        let port = after("Redis clients").rsplit(':').next().unwrap().parse().unwrap();
        let url = after("metrics, admin");
        Server { child, port, url, banner }
    }

    /// The raw bytes of a command's reply, as far as they arrive together.
    fn redis(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "{command}\r\n").unwrap();
        let mut reply = [0; 4096];
        let count = stream.read(&mut reply).unwrap();
        String::from_utf8_lossy(&reply[..count]).into_owned()
    }

    fn page(&self, path: &str) -> (u16, String) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.get(format!("{}{path}", self.url)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    fn admin(&self, words: &[&str]) -> (bool, String) {
        let output = Command::new(BRIDLE)
            .arg("admin")
            .arg("--url")
            .arg(&self.url)
            .args(words)
            .env_remove("BRIDLE_PASSWORD")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn admin_json(&self, words: &[&str]) -> Value {
        let (fine, text) = self.admin(&[&["--json"], words].concat());
        assert!(fine, "{words:?}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args(["-s", name, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_reports_its_state_and_stops_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Server::start(&data, &[]);
    assert!(
        server.banner.contains("durability      always: an acknowledged write survives power loss"),
        "{}",
        server.banner
    );
    assert!(
        server.banner.contains(&format!("Try:  redis-cli -p {} SET greeting hello", server.port)),
        "{}",
        server.banner
    );
    assert_eq!(server.redis("SET greeting hello"), "+OK\r\n");
    assert_eq!(server.page("/health/live"), (200, "ok\n".to_owned()));
    assert_eq!(server.page("/health/ready"), (200, "ok\n".to_owned()));
    assert_eq!(server.page("/nothing").0, 404);
    let (status, metrics) = server.page("/metrics");
    assert_eq!(status, 200);
    for line in [
        "bridle_ready 1",
        "bridle_log_writable 1",
        "bridle_table_rows{table=\"db0\"} 1",
        "bridle_commands_total{cmd=\"set\"} 1",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line} is missing in:\n{metrics}");
    }
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));

    let mut server = Server::start(&data, &["--log-format", "json"]);
    assert_eq!(server.redis("GET greeting"), "$5\r\nhello\r\n");
    server.signal("INT");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn admin_manages_tables() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    assert!(server.admin(&["tables"]).1.contains("no tables yet"));
    assert_eq!(server.redis("SET a 1"), "+OK\r\n");
    let made =
        server.admin_json(&["create", "users", "--partitions", "4", "--env", "default_ttl=60"]);
    assert_eq!(
        (&made["partitions"], &made["status"], &made["envs"]),
        (&json!(4), &json!("ready"), &json!({"default_ttl": "60"}))
    );
    let (fine, text) = server.admin(&["tables"]);
    assert!(
        fine && text.contains("users") && text.contains("default_ttl=60") && text.contains("db0"),
        "{text}"
    );
    assert_eq!(
        server.admin_json(&["env", "set", "users", "default_ttl", "90"]),
        json!({"default_ttl": "90"})
    );
    assert_eq!(server.admin(&["env", "get", "users", "default_ttl"]), (true, "90\n".to_owned()));
    assert_eq!(server.admin_json(&["env", "del", "users", "default_ttl"]), json!({}));
    assert_eq!(
        server.admin(&["env", "set", "users", "default_tll", "1"]),
        (false, "bridle: no such env 'default_tll'; there are: default_ttl\n".to_owned())
    );
    assert_eq!(
        server.admin(&["create", "users"]),
        (false, "bridle: table 'users' exists\n".to_owned())
    );
    assert_eq!(server.admin_json(&["compact", "db0", "--progress"])["status"], "none");
    let done = server.admin_json(&["compact", "db0", "--wait"]);
    assert_eq!((&done["status"], &done["partitions_done"]), (&json!("done"), &json!(1)));
    let status = server.admin_json(&["status"]);
    assert_eq!(
        (&status["ready"], &status["tables"], &status["partitions"], &status["faults"]),
        (&json!(true), &json!(2), &json!(5), &json!([]))
    );
    assert!(server.admin(&["status"]).1.starts_with("status      ready, up 0d 00:00:"));
    assert!(server.admin(&["drop", "users"]).0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.admin_json(&["tables"]).as_array().unwrap().len() > 1 {
        assert!(Instant::now() < deadline, "the dropped table stays");
        std::thread::sleep(Duration::from_millis(20));
    }
    let left: Vec<_> = std::fs::read_dir(dir.path().join("tables"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        left.len() == 1 && left[0].to_string_lossy().starts_with("1-0-"),
        "its directories are gone: {left:?}"
    );
}

#[test]
fn a_second_process_on_a_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let output = Command::new(BRIDLE)
        .args(["standalone", "--port", "0", "--http-port", "0", "--data"])
        .arg(dir.path())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success()
            && error
                .contains(&format!("in use by another process (process {})", server.child.id())),
        "{error}"
    );
    assert_eq!(server.redis("PING"), "+PONG\r\n");
}

#[test]
fn a_password_guards_clients_and_the_admin_api() {
    let dir = tempfile::tempdir().unwrap();
    let (password, config) = (dir.path().join("password"), dir.path().join("bridle.toml"));
    std::fs::write(&password, "open sesame\n").unwrap();
    std::fs::write(&config, "[proxy]\nbind = \"0.0.0.0\"\n").unwrap();
    let flags =
        ["--config", config.to_str().unwrap(), "--password-file", password.to_str().unwrap()];
    let server = Server::start(&dir.path().join("data"), &flags);
    assert!(server.redis("GET a").starts_with("-NOAUTH"));
    assert!(
        server
            .admin(&["status"])
            .1
            .contains("the server's password or the cluster's secret is wanted")
    );
    assert!(server.admin(&["--password-file", password.to_str().unwrap(), "status"]).0);
    assert_eq!(server.page("/metrics").0, 200);
    assert_eq!(server.page("/v1/tables").0, 401);
}

#[test]
fn config_rewrite_keeps_the_file_and_what_was_set() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("bridle.toml");
    std::fs::write(&config, "# mine\n[proxy]\nmaxclients = 50 # few\n").unwrap();
    let server = Server::start(&dir.path().join("data"), &["--config", config.to_str().unwrap()]);
    assert_eq!(server.redis("CONFIG SET maxclients 60 timeout 90"), "+OK\r\n");
    assert_eq!(server.redis("CONFIG REWRITE"), "+OK\r\n");
    assert_eq!(
        std::fs::read_to_string(&config).unwrap(),
        "# mine\n[proxy]\nmaxclients = 60 # few\ntimeout = \"90s\"\n"
    );
}

#[test]
fn shutdown_by_a_client_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[]);
    assert_eq!(server.redis("SET a 1"), "+OK\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.write_all(b"SHUTDOWN\r\n").unwrap();
    assert_eq!(server.wait(), Some(0));
    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.redis("GET a"), "$1\r\n1\r\n");
}

/// A start without the log that the store was written with fails.
#[test]
fn a_store_without_its_log_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.redis("SET greeting hello"), "+OK\r\n");
    drop(server);
    let (log, away) = (dir.path().join("log"), dir.path().join("away"));
    std::fs::rename(&log, &away).unwrap();
    for is_empty in [false, true] {
        if is_empty {
            std::fs::create_dir_all(&log).unwrap();
        }
        let data = dir.path().to_str().unwrap();
        let output = Command::new(BRIDLE)
            .args(["standalone", "--port", "0", "--http-port", "0", "--data", data])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains("open the Raft log: log directory"),
            "{said}"
        );
    }
    // The failed start changed nothing: with its log, the store is served.
    std::fs::remove_dir(&log).unwrap();
    std::fs::rename(&away, &log).unwrap();
    assert_eq!(Server::start(dir.path(), &[]).redis("GET greeting"), "$5\r\nhello\r\n");
}
