//! RESP over TLS with redis-cli: certificates on both sides, in addition to the plain
//! port or instead of it. (Libraries: `clients.rs`.)

mod external;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use external::{Certificates, ProgramOutput, free_port, run};
use integration::{Client, Server, within};

/// redis-cli over TLS with further arguments.
fn redis_cli(port: u16, words: &[&str]) -> ProgramOutput {
    run("redis-cli", &[&["--tls", "-h", "127.0.0.1", "-p", &port.to_string()], words].concat(), "")
}

#[test]
fn commands_go_over_tls_beside_the_plain_port() {
    let (certificates, port) = (Certificates::new(), free_port());
    let server = Server::builder().config(&certificates.section(port)).start();
    let authority = certificates.text("ca.pem");
    let set = redis_cli(port, &["--cacert", &authority, "SET", "k", "v"]);
    assert_eq!(set.output.trim(), "OK");
    assert_eq!(server.client().run("GET k").text(), "v");
    assert_eq!(redis_cli(port, &["--cacert", &authority, "-3", "GET", "k"]).output.trim(), "v");
}

#[test]
fn an_untrusted_certificate_ends_the_handshake() {
    let (certificates, port) = (Certificates::new(), free_port());
    let server = Server::builder().config(&certificates.section(port)).start();
    let other = Certificates::new();
    let refused = redis_cli(port, &["--cacert", &other.text("ca.pem"), "PING"]);
    assert!(refused.output.contains("certificate verify failed"), "{}", refused.output);
    // The server keeps serving.
    assert_eq!(server.client().run("PING").text(), "PONG");
}

#[test]
fn clients_show_certificates_where_they_must() {
    let (certificates, port) = (Certificates::new(), free_port());
    let section = format!(
        "{}client_ca_file = \"{}\"",
        certificates.section(port),
        certificates.text("ca.pem")
    );
    let _server = Server::builder().config(&section).start();
    let (authority, own, key) = (
        certificates.text("ca.pem"),
        certificates.text("client.pem"),
        certificates.text("client.key"),
    );
    let shown = redis_cli(port, &["--cacert", &authority, "--cert", &own, "--key", &key, "PING"]);
    assert_eq!(shown.output.trim(), "PONG");
    let none = redis_cli(port, &["--cacert", &authority, "PING"]);
    assert!(!none.output.contains("PONG"), "{}", none.output);
    let other = Certificates::new();
    let words = [
        "--cacert",
        &authority,
        "--cert",
        &other.text("client.pem"),
        "--key",
        &other.text("client.key"),
        "PING",
    ];
    let stranger = redis_cli(port, &words);
    assert!(!stranger.output.contains("PONG"), "{}", stranger.output);
}

#[test]
fn with_tls_only_the_plain_port_stays_closed() {
    let (certificates, port) = (Certificates::new(), free_port());
    // The kit waits for the plain port, which stays closed; so this waits for TLS.
    let server =
        Server::builder().config(&format!("{}only = true", certificates.section(port))).spawn();
    let authority = certificates.text("ca.pem");
    within(60, "the TLS port answers", || {
        redis_cli(port, &["--cacert", &authority, "PING"]).output.trim() == "PONG"
    });
    assert!(Client::connect(server.port).is_err(), "the plain port is open");
}

#[test]
fn plaintext_on_the_tls_port_is_refused() {
    let (certificates, port) = (Certificates::new(), free_port());
    let server = Server::builder().config(&certificates.section(port)).start();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a live socket");
    stream.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n").expect("a live socket");
    let mut output = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut output);
    assert!(!output.starts_with(b"+OK"), "{output:?}");
    assert_eq!(server.client().run("EXISTS k").int(), 0);
}

#[test]
fn an_unfinished_handshake_delays_nobody() {
    let (certificates, port) = (Certificates::new(), free_port());
    let _server = Server::builder().config(&certificates.section(port)).start();
    let idle: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).expect("the port is open"))
        .collect();
    assert_eq!(
        redis_cli(port, &["--cacert", &certificates.text("ca.pem"), "PING"]).output.trim(),
        "PONG"
    );
    drop(idle);
}

#[test]
fn a_missing_certificate_is_named_at_start() {
    let config =
        "[tls]\nport = 1\ncert_file = \"/nowhere/server.pem\"\nkey_file = \"/nowhere/server.key\"";
    let mut server = Server::builder().config(config).spawn();
    assert!(!server.wait().success());
    assert!(server.output().contains("/nowhere/server."), "{}", server.output());
}

#[test]
fn certificates_are_reloaded_by_sighup_and_config_set() {
    let (certificates, port) = (Certificates::new(), free_port());
    let server = Server::builder().config(&certificates.section(port)).start();
    let answers = |authority: &Certificates| {
        redis_cli(port, &["--cacert", &authority.text("ca.pem"), "PING"]).output.trim() == "PONG"
    };
    let put = |from: &Certificates, file: &str| {
        std::fs::copy(from.path(file), certificates.path(file)).expect("room")
    };
    let days_left = || {
        let page = server.page("/metrics").1;
        let line = page.lines().find_map(|line| {
            line.strip_prefix("bridle_tls_seconds_left{certificates=\"clients\"} ")
        });
        line.expect("it is exported").parse::<f64>().expect("a number") / 86_400.0
    };
    assert!(days_left() > 1000.0, "{}", days_left());
    let (old, second, third) =
        (Certificates::copy_of(&certificates), Certificates::new(), Certificates::new());
    assert!(answers(&old));
    put(&second, "server.pem");
    server.signal("HUP");
    within(10, "that they do not fit is said", || {
        server.output().contains("cannot reload certificates")
    });
    assert!(answers(&old) && !answers(&second));
    put(&second, "server.key");
    server.signal("HUP");
    within(10, "the second ones are shown", || answers(&second));
    assert!(!answers(&old));

    let mut client = server.client();
    let (cert, key) = (third.text("server.pem"), third.text("server.key"));
    let refused = client.run(&format!("CONFIG SET tls-cert-file {cert}")).text();
    assert!(
        refused
            .starts_with("ERR CONFIG SET failed (possibly related to argument 'tls-cert-file') - "),
        "{refused}"
    );
    assert!(client.setting("tls-cert-file") == certificates.text("server.pem") && answers(&second));
    assert_eq!(
        client.run(&format!("CONFIG SET tls-cert-file {cert} tls-key-file {key}")),
        integration::Value::ok()
    );
    assert!(answers(&third) && !answers(&second));
    // Setting the same name again reloads the file.
    let own = certificates.text("server.pem");
    assert_eq!(
        client.run(&format!(
            "CONFIG SET tls-cert-file {own} tls-key-file {}",
            certificates.text("server.key")
        )),
        integration::Value::ok()
    );
    assert!(answers(&second));
    put(&third, "server.pem");
    put(&third, "server.key");
    assert_eq!(client.run(&format!("CONFIG SET tls-cert-file {own}")), integration::Value::ok());
    assert!(answers(&third));
}
