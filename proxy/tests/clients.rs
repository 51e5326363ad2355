//! Connections: CLIENT, limits, idle timeout, server shutdown.

mod kit;

use std::time::{Duration, Instant};

use kit::{Server, command};
use proxy::client::Endpoint;
use proxy::handshake;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn client_tells_who_is_there() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("CLIENT ID", ":1\r\n").await;
    client.ask("CLIENT GETNAME", "$-1\r\n").await;
    client.ask("CLIENT SETNAME me", "+OK\r\n").await;
    client.ask("CLIENT SETINFO LIB-NAME lib", "+OK\r\n").await;
    client.ask("SELECT 3", "+OK\r\n").await;
    client.send("MULTI\r\n").await;
    client.expect("+OK\r\n").await;
    let mut other = server.connect().await;
    let line = other.until("CLIENT LIST ID 1", "lib-ver=\n\r\n").await;
    let port = client.stream.local_addr().unwrap().port();
    for part in [
        format!("id=1 addr=127.0.0.1:{port} laddr=127.0.0.1:{} fd=", server.port),
        " name=me age=0 idle=0 flags=x db=3 sub=0 psub=0 ssub=0 multi=0 watch=0 qbuf=0 ".into(),
        " events=r cmd=multi user=default redir=-1 resp=2 lib-name=lib lib-ver=\n".into(),
    ] {
        assert!(line.contains(&part), "{part} is not in {line}");
    }
    other.ask("CLIENT LIST TYPE foo", "-ERR Unknown client type 'foo'\r\n").await;
    other.ask("CLIENT LIST TYPE replica", "$0\r\n\r\n").await;
    other.ask("CLIENT UNBLOCK 1", ":0\r\n").await;
}

#[tokio::test]
async fn client_kill_ends_others_at_once_and_oneself_after_the_reply() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    other.ask("PING", "+PONG\r\n").await;
    client.ask("PING", "+PONG\r\n").await;
    let address = other.stream.local_addr().unwrap().to_string();
    client.ask("CLIENT KILL 127.0.0.1:1", "-ERR No such client\r\n").await;
    client.send(command(&["CLIENT", "KILL", "USER", "a\r\nb"])).await;
    client.expect("-ERR No such user 'a  b'\r\n").await;
    client.ask(&format!("CLIENT KILL ADDR {address}"), ":1\r\n").await;
    other.expect_end().await;
    client.ask("CLIENT KILL TYPE normal", ":0\r\n").await;
    client.send("CLIENT KILL TYPE normal SKIPME no\r\nPING\r\n").await;
    client.expect(":1\r\n").await;
    client.expect_end().await;
}

#[tokio::test]
async fn client_reply_silences() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client
        .send(
            "CLIENT REPLY SKIP\r\nPING\r\nECHO a\r\nCLIENT REPLY OFF\r\nPING\r\nSET k v\r\nCLIENT \
             REPLY ON\r\nGET k\r\n",
        )
        .await;
    client.expect("$1\r\na\r\n+OK\r\n$1\r\nv\r\n").await;
}

#[tokio::test]
async fn client_pause_holds_back() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    client.ask("SET k 1", "+OK\r\n").await;
    client.ask("CLIENT PAUSE 10000 WRITE", "+OK\r\n").await;
    other.send("GET k\r\nSET k 2\r\nGET k\r\n").await;
    other.expect("$1\r\n1\r\n").await;
    client.ask("GET k", "$1\r\n1\r\n").await;
    let begun = Instant::now();
    client.ask("CLIENT UNPAUSE", "+OK\r\n").await;
    other.expect("+OK\r\n$1\r\n2\r\n").await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    client.ask("CLIENT PAUSE 200", "+OK\r\n").await;
    let begun = Instant::now();
    other.ask("PING", "+PONG\r\n").await;
    assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn client_over_maxclients_gets_an_error() {
    let server = Server::with(1, |settings| settings.clients_max = 2).await;
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    first.ask("PING", "+PONG\r\n").await;
    second.ask("PING", "+PONG\r\n").await;
    let mut third = server.connect().await;
    third.expect("-ERR max number of clients reached\r\n").await;
    third.expect_end().await;
    drop(first);
    for _ in 0..100 {
        if server.proxy.clients.len() < 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.connect().await.ask("PING", "+PONG\r\n").await;
}

#[tokio::test]
async fn silent_clients_are_closed_after_the_timeout() {
    let server = Server::with(1, |settings| settings.idle_timeout_s = 1).await;
    let mut client = server.connect().await;
    client.ask("PING", "+PONG\r\n").await;
    client.expect_end().await;
}

#[tokio::test]
async fn busy_and_paused_clients_are_not_idle() {
    let server = Server::with(1, |settings| settings.idle_timeout_s = 1).await;
    let mut client = server.connect().await;
    let value = String::from_utf8(kit::value(1 << 20).to_vec()).unwrap();
    client.send(command(&["SET", "k", &value])).await;
    client.expect("+OK\r\n").await;
    client.ask("CLIENT PAUSE 2400 WRITE", "+OK\r\n").await;
    let (mut asleep, mut held_back, mut slow) =
        (server.connect().await, server.connect().await, server.connect().await);
    let (mut reader, theirs) = tokio::io::duplex(1 << 16);
    let endpoint = Endpoint {
        address: "a:1".into(),
        local_address: "b:2".into(),
        fd: 0,
        is_loopback: true,
        is_unix: false,
    };
    let met = tokio::spawn(handshake(server.proxy.clone(), theirs, endpoint));
    tokio::join!(
        async { asleep.ask("DEBUG SLEEP 2.4", "+OK\r\n").await },
        async { held_back.ask("SET k v", "+OK\r\n").await },
        async {
            for byte in b"PING\r\n" {
                slow.send([*byte]).await;
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            slow.expect("+PONG\r\n").await;
        },
        async {
            reader.write_all(b"GET k\r\n").await.unwrap();
            let mut got = vec![0; "$1048576\r\n\r\n".len() + value.len()];
            for piece in got.chunks_mut(1 << 17) {
                tokio::time::sleep(Duration::from_millis(270)).await;
                reader.read_exact(piece).await.expect("it goes on as long as the client reads");
            }
        },
    );
    drop(reader);
    met.await.unwrap();
}

#[tokio::test]
async fn a_sleeping_client_is_woken_by_its_end() {
    let server = Server::start().await;
    let (mut killed, mut left, mut client) =
        (server.connect().await, server.connect().await, server.connect().await);
    for (id, sleeper) in [(1, &mut killed), (2, &mut left)] {
        sleeper.ask("PING", "+PONG\r\n").await;
        sleeper.send("DEBUG SLEEP 3000\r\nPING\r\n").await;
        while !client
            .until(&format!("CLIENT LIST ID {id}"), "lib-ver=\n\r\n")
            .await
            .contains(" cmd=debug|sleep ")
        {}
    }
    left.send("PING\r\n").await;
    drop(left);
    client.ask("CLIENT KILL ID 1", ":1\r\n").await;
    killed.expect_end().await;
    for _ in 0..100 {
        if server.proxy.clients.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.proxy.clients.len(), 1);
}

#[tokio::test]
async fn unauthenticated_clients_are_of_the_default_user() {
    let server = Server::with(1, |settings| settings.password = Some("secret".into())).await;
    let (mut stranger, mut client) = (server.connect().await, server.connect().await);
    stranger.ask("PING", "-NOAUTH Authentication required.\r\n").await;
    client.ask("AUTH secret", "+OK\r\n").await;
    let line = client.until("CLIENT LIST ID 1", "lib-ver=\n\r\n").await;
    assert!(line.contains(" user=default "), "{line}");
    client.ask("CLIENT KILL USER default", ":1\r\n").await;
    stranger.expect_end().await;
}

#[tokio::test]
async fn reading_client_gets_a_reply_of_any_size() {
    let server = Server::with(1, |settings| settings.output_bytes_max = 1 << 20).await;
    let mut client = server.connect().await;
    let value = String::from_utf8(kit::value(16 << 20).to_vec()).unwrap();
    client.send(command(&["SET", "k", &value])).await;
    client.expect("+OK\r\n").await;
    client.send("GET k\r\nGET k\r\nPING\r\n").await;
    let reply = format!("${}\r\n{value}\r\n", value.len());
    client.expect(&reply).await;
    client.expect(&reply).await;
    client.expect("+PONG\r\n").await;
    assert_eq!(server.proxy.stats.output_limit_disconnections.get(), 0);
}

#[tokio::test]
async fn quit_answers_and_closes() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("PING\r\nQUIT\r\nPING\r\n").await;
    client.expect("+PONG\r\n+OK\r\n").await;
    client.expect_end().await;
}

#[tokio::test]
async fn received_commands_are_answered_before_the_server_stops() {
    let mut server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("PING", "+PONG\r\n").await;
    *server.world.delay.lock() = Duration::from_millis(300);
    client.send("SET k v\r\nGET k\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.proxy.shutdown.cancel();
    client.expect("+OK\r\n$1\r\nv\r\n").await;
    client.expect_end().await;
    tokio::time::timeout(Duration::from_secs(5), &mut server.serving)
        .await
        .expect("stopped")
        .unwrap();
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.is_err());
}

#[tokio::test]
async fn monitors_see_the_commands_of_others() {
    let server = Server::start().await;
    let (mut monitor, mut client) = (server.connect().await, server.connect().await);
    monitor.ask("MONITOR", "+OK\r\n").await;
    client.send(command(&["SET", "k", "a\nb"])).await;
    client.expect("+OK\r\n").await;
    let line = monitor.until("", "\"a\\nb\"\r\n").await;
    let port = client.stream.local_addr().unwrap().port();
    assert!(
        line.starts_with('+') && line.contains(&format!("[0 127.0.0.1:{port}] \"SET\" \"k\"")),
        "{line}"
    );
}

#[tokio::test]
async fn monitor_that_does_not_read_is_disconnected() {
    let server = Server::with(1, |settings| settings.output_bytes_max = 16 << 20).await;
    let (mut monitor, mut client) = (server.connect().await, server.connect().await);
    monitor.ask("MONITOR", "+OK\r\n").await;
    let echo = command(&["ECHO", &"x".repeat(100_000)]);
    for _ in 0..400 {
        client.send(&echo).await;
        client.expect(&format!("$100000\r\n{}\r\n", "x".repeat(100_000))).await;
        if server.proxy.clients.len() == 1 {
            break;
        }
    }
    assert_eq!(server.proxy.clients.len(), 1);
}
