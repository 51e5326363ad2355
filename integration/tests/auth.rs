//! Authentication: passwords, protected mode, limits on unauthenticated clients, and the
//! secrecy of secrets.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use integration::{Client, Server, ServerBuilder, Value, bridle, bridle_with};

const PASSWORD: &str = "hunter2-and-more";

fn with_password() -> ServerBuilder {
    Server::builder()
        .flag("durability", "os")
        .config(&format!("[proxy]\nrequirepass = \"{PASSWORD}\""))
}

fn error(text: &str) -> Value {
    Value::Error(text.to_owned())
}

#[test]
fn commands_before_auth_are_refused() {
    let server = with_password().start();
    let mut client = server.client();
    for line in [
        "GET k",
        "SET k v",
        "PING",
        "CONFIG GET requirepass",
        "FLUSHALL",
        "SHUTDOWN",
        "MULTI",
        "CLIENT LIST",
    ] {
        let output = client.run(line);
        assert_eq!(output, error("NOAUTH Authentication required."), "{line}");
    }
    assert!(
        client
            .run("HELLO 3")
            .text()
            .starts_with("NOAUTH HELLO must be called with the client already authenticated")
    );
    let wrong = error("WRONGPASS invalid username-password pair or user is disabled.");
    assert_eq!(client.run("AUTH wrong"), wrong);
    assert_eq!(client.run(&format!("AUTH somebody {PASSWORD}")), wrong);
    assert_eq!(client.run("HELLO 3 AUTH default wrong"), wrong);
    assert_eq!(client.run("AUTH a b c"), error("ERR syntax error"));
    assert_eq!(client.run(&format!("AUTH {PASSWORD}")), Value::ok());
    assert_eq!(client.run("SET k v"), Value::ok());
    assert_eq!(client.run("AUTH wrong"), wrong);
    assert_eq!(client.run("GET k"), Value::bulk("v"), "a wrong password does not log out");
}

#[test]
fn hello_sets_password_name_and_protocol() {
    let server = with_password().start();
    let mut client = server.client();
    assert!(!client.run(&format!("HELLO 3 AUTH default {PASSWORD} SETNAME me")).is_error());
    assert_eq!(client.run("CLIENT GETNAME"), Value::bulk("me"));
    assert_eq!(client.run("RESET"), Value::Status("RESET".into()));
    assert_eq!(client.run("GET k"), error("NOAUTH Authentication required."));
}

#[test]
fn a_new_password_applies_to_new_connections() {
    let server = with_password().start();
    let mut client = server.client();
    client.run(&format!("AUTH {PASSWORD}"));
    assert_eq!(client.run("CONFIG SET requirepass another"), Value::ok());
    assert_eq!(client.run("PING"), Value::Status("PONG".into()));
    let mut next = server.client();
    assert!(next.run(&format!("AUTH {PASSWORD}")).text().starts_with("WRONGPASS"));
    assert_eq!(next.run("AUTH another"), Value::ok());
}

#[test]
fn a_public_address_needs_a_password() {
    for flags in [["--bind", "0.0.0.0"], ["--bind", "::"], ["--set", "http.bind=\"0.0.0.0\""]] {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data").display().to_string();
        let output = bridle(
            &[&["standalone", "--port", "0", "--http-port", "0", "--data", &data][..], &flags]
                .concat(),
        );
        assert!(!output.success, "{flags:?} was let through");
        for word in ["no password is set", "requirepass_file", "127.0.0.1"] {
            assert!(output.error.contains(word), "{flags:?}: {word} is not in {}", output.error);
        }
    }
}

#[test]
fn no_secret_is_logged_shown_or_kept() {
    let secrets =
        [PASSWORD, "guess-one", "guess-two", "guess-three", "the-next-one", "guess-at-http"];
    let server = with_password()
        .flag("log-level", "trace")
        .flag("set", "proxy.slowlog_log_slower_than=\"0s\"")
        .start();
    let mut client = server.client();
    client.run("AUTH guess-one");
    client.run("HELLO 3 AUTH default guess-two");
    client.run("HELLO 3 AUTH default");
    client.run("AUTH guess-three too many words");
    client.run(&format!("AUTH {PASSWORD}"));
    let mut monitor = server.client();
    monitor.run(&format!("AUTH {PASSWORD}"));
    monitor.run("MONITOR");
    client.run(&format!("HELLO 3 AUTH default {PASSWORD}"));
    client.run("CONFIG SET requirepass the-next-one");
    client.run("AUTH the-next-one");
    client.run("ECHO the-end");
    let mut seen = String::new();
    while !seen.contains("the-end") {
        seen += &monitor.reply().expect("a monitor sees the command").text();
    }
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let tables = format!("http://127.0.0.1:{}/v1/tables", server.http_port);
    let refused = agent
        .get(&tables)
        .header("Authorization", "Bearer guess-at-http")
        .call()
        .expect("the HTTP port answers");
    assert_eq!(refused.status().as_u16(), 401);
    let slow = format!("{:?}", client.run("SLOWLOG GET -1"));
    let clients = client.run("CLIENT LIST").text();
    let info = client.run("INFO everything").text();
    let metrics = server.page("/metrics").1;
    let config = bridle(&[
        "standalone",
        "--print-config",
        "--config",
        &server.dir().with_extension("toml").display().to_string(),
    ]);
    assert!(config.success && config.out.contains("requirepass"), "{config:?}");
    for (place, text) in [
        ("the log", server.output()),
        ("MONITOR", seen),
        ("SLOWLOG", slow),
        ("CLIENT LIST", clients),
        ("INFO", info),
        ("/metrics", metrics),
        ("--print-config", config.out),
    ] {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} is in {place}:\n{text}");
        }
    }
}

#[test]
fn the_admin_api_needs_the_password_and_health_does_not() {
    let server = with_password().start();
    assert_eq!(server.page("/health/ready").0, 200);
    assert_eq!(server.page("/metrics").0, 200);
    assert_eq!(server.page("/v1/tables").0, 401);
    let url = format!("http://127.0.0.1:{}/v1/tables", server.http_port);
    let answer = ureq::get(&url)
        .header("Authorization", &format!("Bearer {PASSWORD}"))
        .call()
        .expect("the password is right");
    assert_eq!(answer.status().as_u16(), 200);
}

/// An address of this machine other than loopback, if it has one: connections to it count
/// as remote.
#[test]
fn without_a_password_only_loopback_administers() {
    let server = with_password().config("[http]\nbind = \"0.0.0.0\"").start();
    let mut client = server.client();
    client.run(&format!("AUTH {PASSWORD}"));
    assert_eq!(client.call(&["CONFIG", "SET", "requirepass", ""]).expect("a reply"), Value::ok());
    assert_eq!(server.page("/v1/tables").0, 200);
    // Nothing is sent: this only asks for the source address.
    let probe = UdpSocket::bind("0.0.0.0:0").expect("a free port");
    let Ok(own) = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()) else {
        eprintln!("not run to its end: this machine has no address but loopback");
        return;
    };
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let status = |page: &str| {
        let url = format!("http://{}:{}{page}", own.ip(), server.http_port);
        agent.get(&url).call().expect("the HTTP port answers").status().as_u16()
    };
    assert_eq!(
        (status("/v1/tables"), status("/v1/status"), status("/health/live")),
        (401, 401, 200)
    );
    assert_eq!(client.run("CONFIG SET protected-mode no"), Value::ok());
    assert_eq!(status("/v1/tables"), 200);
}

/// All output of the server to bytes of an unauthenticated client, until the connection
/// ends.
fn last_words(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a live socket");
    // The server may close the connection before it has read everything.
    let _ = stream.write_all(bytes);
    let mut output = Vec::new();
    let _ = stream.read_to_end(&mut output);
    String::from_utf8_lossy(&output).into_owned()
}

#[test]
fn large_requests_before_auth_are_cut_off() {
    let server = with_password().start();
    assert_eq!(
        last_words(server.port, b"*11\r\n"),
        "-ERR Protocol error: unauthenticated multibulk length\r\n"
    );
    assert_eq!(
        last_words(server.port, b"*2\r\n$16385\r\n"),
        "-ERR Protocol error: unauthenticated bulk length\r\n"
    );
    assert_eq!(
        last_words(server.port, &[b'x'; 100_000]),
        "-ERR Protocol error: too big inline request\r\n"
    );
    let mut client = server.client();
    client.run(&format!("AUTH {PASSWORD}"));
    let large = "x".repeat(1_000_000);
    assert_eq!(client.call(&["ECHO", &large]).expect("a live server"), Value::bulk(&large));
}

#[test]
fn unauthenticated_clients_must_read_their_replies() {
    let server = with_password().start();
    let before = server.rss_bytes();
    let pings = b"*1\r\n$4\r\nPING\r\n".repeat(1 << 16);
    let send = || {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("the port is open");
        stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a live socket");
        // Until the server reads no more.
        let taken = (0..64).take_while(|_| stream.write_all(&pings).is_ok()).count();
        assert!(taken < 64, "a stranger's {} MiB were taken in", (taken * pings.len()) >> 20);
        stream
    };
    let strangers: Vec<TcpStream> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..20).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().expect("the server stops reading")).collect()
    });
    // Freed memory returns to the system a moment later.
    integration::within(20, "20 strangers hold little", || {
        server.rss_bytes().saturating_sub(before) < 20 << 20
    });
    drop(strangers);
    assert_eq!(server.client().run(&format!("AUTH {PASSWORD}")), Value::ok());
}

#[test]
fn unauthenticated_clients_cost_little_memory() {
    // They alone must not exceed the memory limit of all clients.
    let server = with_password().flag("set", "proxy.maxmemory_clients=256MiB").start();
    let before = server.rss_bytes();
    // Each sends an unfinished command of the maximum size.
    let unfinished = [&b"*10\r\n"[..], &b"$16384\r\n"[..], &[b'x'; 16384], b"\r\n"].concat();
    let unfinished =
        [&unfinished[..], &[&b"$16384\r\n"[..], &[b'x'; 16384], b"\r\n"].concat().repeat(8)]
            .concat();
    let strangers: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream =
                TcpStream::connect(("127.0.0.1", server.port)).expect("the port is open");
            stream.write_all(&unfinished).expect("a live socket");
            stream
        })
        .collect();
    let mut client = server.client();
    client.run(&format!("AUTH {PASSWORD}"));
    let mut kept = || -> u64 {
        let list = client.run("CLIENT LIST").text();
        list.split_whitespace()
            .filter_map(|word| word.strip_prefix("qbuf=")?.parse::<u64>().ok())
            .sum()
    };
    integration::within(30, "what they sent has been read", || kept() > 200 * 9 * 16384);
    let grown = server.rss_bytes().saturating_sub(before);
    assert!(grown < 200 * (512 << 10), "200 strangers hold {grown} bytes");
    drop(strangers);
    assert_eq!(
        Client::connect(server.port)
            .map(|mut client| client.run(&format!("AUTH {PASSWORD}")))
            .expect("it serves"),
        Value::ok()
    );
}

#[test]
fn the_admin_client_sends_any_password_and_names_the_port() {
    let server = Server::builder().flag("durability", "os").start();
    // Non-ASCII text, a control character, a trailing blank.
    let password = "pä\u{1}ßwørd 密 ";
    let mut client = server.client();
    assert_eq!(
        client.call(&["CONFIG", "SET", "requirepass", password]).expect("a live socket"),
        Value::ok()
    );
    let output = bridle_with(Some(password), &["admin", "--url", &server.url(), "status"]);
    assert!(output.success, "{}", output.error);
    let file = server.dir().with_extension("password");
    std::fs::write(&file, "pässwörd\n").expect("room");
    assert_eq!(
        client.call(&["CONFIG", "SET", "requirepass", "pässwörd"]).expect("a live socket"),
        Value::ok()
    );
    let output = server.admin(&["--password-file", &file.display().to_string(), "tables"]);
    assert!(output.success, "{}", output.error);
    assert!(server.admin(&["tables"]).error.contains("password"));

    let (place, free) = (
        server.url().trim_start_matches("http://").to_owned(),
        integration::cluster::free_ports(1)[0],
    );
    for (url, why) in [
        (place.clone(), format!("try --url http://{place}")),
        (format!("http://127.0.0.1:{free}"), format!("no server answers at 127.0.0.1:{free}")),
        (format!("http://127.0.0.1:{}", server.port), "is a port for Redis clients".to_owned()),
        (format!("https://{place}"), "plain HTTP".to_owned()),
    ] {
        let output = bridle(&["admin", "--url", &url, "tables"]);
        assert!(!output.success && output.error.contains(&why), "{url}: {}", output.error);
    }
}
