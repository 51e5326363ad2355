//! Redis clients over a Unix socket, as in Redis.

mod external;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use external::output;
use integration::{Server, ServerBuilder, Value};

fn at(path: &str) -> ServerBuilder {
    Server::builder()
        .flag("durability", "os")
        .flag("set", format!("proxy.unixsocket={path}"))
        .flag("set", "proxy.unixsocketperm=700")
}

#[test]
fn clients_come_over_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("redis.sock").display().to_string();
    // A stale socket after a kill is replaced.
    drop(UnixListener::bind(&path).expect("a socket"));
    let mut server = at(&path).start();
    let mode =
        |path: &str| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(output("redis-cli", &["-s", &path], "SET a 1\nGET a\n"), "OK\n1\n");
    let mut client = server.client();
    assert_eq!(
        (client.run("GET a"), client.setting("unixsocket"), client.setting("unixsocketperm")),
        (Value::bulk("1"), path.clone(), "700".into())
    );
    assert!(
        client
            .run("CONFIG SET unixsocket /elsewhere")
            .text()
            .ends_with("can't set immutable config")
    );
    let line = output("redis-cli", &["-s", &path], "CLIENT INFO\n");
    assert!(
        line.contains(&format!(" addr={path}:0 laddr={path}:0 ")) && line.contains(" flags=U "),
        "{line}"
    );
    client.run("MONITOR");
    output("redis-cli", &["-s", &path], "PING seen\n");
    // redis-cli sends commands of its own first.
    let seen: Vec<String> = (0..2).map(|_| client.reply().expect("a line").text()).collect();
    assert!(seen[1].ends_with(&format!(" [0 unix:{path}] \"PING\" \"seen\"")), "{seen:?}");

    // Two servers can't share a path, and a file that is not a socket stays.
    let mut second = at(&path).spawn();
    assert!(
        !second.wait().success() && second.output().contains("another process listens on it"),
        "{}",
        second.output()
    );
    let file = dir.path().join("file").display().to_string();
    std::fs::write(&file, "mine").expect("room");
    let mut third = at(&file).spawn();
    assert!(
        !third.wait().success() && third.output().contains("not a socket"),
        "{}",
        third.output()
    );
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "mine");

    server.kill();
    server.restart();
    assert_eq!(output("redis-cli", &["-s", &path], "PING\n"), "PONG\n");
    assert!(server.stop().success());
    assert!(!std::path::Path::new(&path).exists(), "it is gone with the server");
}
