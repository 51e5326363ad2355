//! RESP as a client sees it: framing, malformed input, inline commands, both protocol
//! versions, authentication.

mod kit;

use kit::{Server, command};

#[tokio::test]
async fn commands_may_arrive_in_any_pieces() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let bytes = format!(
        "\r\n*0\r\n*-1\r\n{}PING\r\n  \r\n{}",
        command(&["SET", "k", "a\r\nb"]),
        command(&["GET", "k"])
    );
    for step in [1, 2, 5, 1000] {
        for piece in bytes.as_bytes().chunks(step) {
            client.send(piece).await;
        }
        client.expect("+OK\r\n+PONG\r\n$4\r\na\r\nb\r\n").await;
    }
}

#[tokio::test]
async fn malformed_input_gets_redis_error_and_ends_the_connection() {
    let server = Server::start().await;
    for (bytes, error) in [
        ("*x\r\n", "invalid multibulk length"),
        ("*1\r\nPING\r\n", "expected '$', got 'P'"),
        ("*1\r\n$-5\r\n", "invalid bulk length"),
        (
            "*1\r\n$999999999\r\n",
            "invalid bulk length: 999999999 bytes are more than proto-max-bulk-len (16777216 \
             bytes; CONFIG SET changes it)",
        ),
        ("SET k \"v\r\n", "unbalanced quotes in request"),
    ] {
        let mut client = server.connect().await;
        client.send(format!("PING\r\n{bytes}")).await;
        client.expect(&format!("+PONG\r\n-ERR Protocol error: {error}\r\n")).await;
        client.expect_end().await;
    }
    let mut client = server.connect().await;
    client.send(vec![b'x'; 65 * 1024]).await;
    client.expect("-ERR Protocol error: too big inline request\r\n").await;
}

#[tokio::test]
async fn oversized_senders_are_disconnected_and_counted() {
    let server = Server::with(1, |settings| settings.query_bytes_max = 100_000).await;
    let mut client = server.connect().await;
    client.send(command(&["ECHO"; 2])).await;
    client.expect("$4\r\nECHO\r\n").await;
    let argv: Vec<&str> = ["EXISTS"].into_iter().chain(["k"; 499]).collect();
    client.send(command(&argv)).await;
    client.expect(":0\r\n").await;
    client.send("*501\r\n").await;
    let limit = "client-query-buffer-limit (100000 bytes; CONFIG SET changes it)";
    client
        .expect(
            "-ERR Protocol error: invalid multibulk length: 501 arguments, at 200 bytes each, are \
             more than ",
        )
        .await;
    client.expect(&format!("{limit}\r\n")).await;
    client.expect_end().await;
    let mut client = server.connect().await;
    client.send("*2\r\n$4\r\nECHO\r\n$100000\r\n").await;
    client.expect(&format!("-ERR Protocol error: command is longer than {limit}\r\n")).await;
    client.expect_end().await;
    let mut client = server.connect().await;
    client.send("*x\r\n").await;
    client.expect("-ERR Protocol error: invalid multibulk length\r\n").await;
    client.expect_end().await;
    assert_eq!(server.proxy.stats.query_limit_disconnections.get(), 2);
}

#[tokio::test]
async fn inline_commands_are_quoted_as_in_redis() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask(r#"set k "a b\x0d\x0a""#, "+OK\r\n").await;
    client.ask("get 'k'", "$5\r\na b\r\n\r\n").await;
}

#[tokio::test]
async fn the_largest_value_fits_and_one_byte_more_does_not() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let largest = String::from_utf8(kit::value(16 << 20).to_vec()).unwrap();
    client.send(command(&["SET", "k", &largest])).await;
    client.expect("+OK\r\n").await;
    client.send(command(&["GET", "k"])).await;
    client.expect(&format!("${}\r\n{largest}\r\n", largest.len())).await;
    client.send(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", largest.len() + 1)).await;
    client
        .expect(
            "-ERR Protocol error: invalid bulk length: 16777217 bytes are more than \
             proto-max-bulk-len (16777216 bytes; ",
        )
        .await;
    client.expect("CONFIG SET changes it)\r\n").await;
    client.expect_end().await;
}

#[tokio::test]
async fn write_over_max_write_size_is_refused_and_connection_stays() {
    let server = Server::with(1, |settings| {
        settings.write_bytes_max = 100_000;
        settings.bulk_bytes_max = 100_000;
    })
    .await;
    let mut client = server.connect().await;
    let value = String::from_utf8(kit::value(90_000).to_vec()).unwrap();
    client.send(command(&["MSET", "a", &value, "b", &value])).await;
    client
        .expect(
            "-ERR request is larger than max_write_size (100000 bytes; the configuration file \
             changes it, at a restart)\r\n",
        )
        .await;
    client.ask("PING", "+PONG\r\n").await;
}

#[tokio::test]
async fn unknown_commands_and_wrong_arity_get_redis_errors() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client
        .ask(
            "foo bar baz",
            "-ERR unknown command 'foo', with args beginning with: 'bar' 'baz' \r\n",
        )
        .await;
    client.ask("get", "-ERR wrong number of arguments for 'get' command\r\n").await;
    client.ask("client foo", "-ERR unknown subcommand 'foo'. Try CLIENT HELP.\r\n").await;
}

#[tokio::test]
async fn hello_switches_the_protocol_within_a_pipeline() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("GET none\r\nHELLO 3\r\nGET none\r\nHELLO 2\r\nGET none\r\n").await;
    let three = "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.4.0\r\n$5\r\nproto\
                 \r\n:3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\
                 \nmaster\r\n$7\r\nmodules\r\n*0\r\n";
    let two = three.replacen("%7", "*14", 1).replace(":3", ":2");
    client.expect(&format!("$-1\r\n{three}_\r\n{two}$-1\r\n")).await;
    client.ask("HELLO 4", "-NOPROTO unsupported protocol version\r\n").await;
}

#[tokio::test]
async fn a_client_authenticates_before_any_other_command() {
    let server = Server::with(1, |settings| settings.password = Some("secret".into())).await;
    let mut client = server.connect().await;
    client.ask("GET k", "-NOAUTH Authentication required.\r\n").await;
    client.until("HELLO 3", "at the same time\r\n").await;
    client
        .ask("AUTH wrong", "-WRONGPASS invalid username-password pair or user is disabled.\r\n")
        .await;
    client
        .ask(
            "AUTH other secret",
            "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        )
        .await;
    // The chunk is split where it must be: commands behind AUTH depend on its result.
    client
        .send("AUTH default secret\r\nSET k v\r\nRESET\r\nGET k\r\nAUTH secret\r\nGET k\r\n")
        .await;
    client
        .expect("+OK\r\n+OK\r\n+RESET\r\n-NOAUTH Authentication required.\r\n+OK\r\n$1\r\nv\r\n")
        .await;
    let mut other = server.connect().await;
    other.until("HELLO 3 AUTH default secret SETNAME me", "*0\r\n").await;
    other.ask("CLIENT GETNAME", "$2\r\nme\r\n").await;
}

#[tokio::test]
async fn unauthenticated_clients_may_send_little() {
    let server = Server::with(1, |settings| settings.password = Some("secret".into())).await;
    let mut client = server.connect().await;
    client.send("*11\r\n").await;
    client.expect("-ERR Protocol error: unauthenticated multibulk length\r\n").await;
    let mut client = server.connect().await;
    client.send("*2\r\n$16385\r\n").await;
    client.expect("-ERR Protocol error: unauthenticated bulk length\r\n").await;
    let mut client = server.connect().await;
    client.ask("AUTH secret", "+OK\r\n").await;
    client.send(command(&["ECHO", &"x".repeat(20_000)])).await;
    client.expect(&format!("$20000\r\n{}\r\n", "x".repeat(20_000))).await;
}

#[tokio::test]
async fn auth_without_configured_password_is_an_error() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let line = "-ERR AUTH <password> called without any password configured for the default user. \
                Are you sure your configuration is correct?\r\n";
    client.ask("AUTH x", line).await;
    client.ask("AUTH default x", "+OK\r\n").await;
}

#[tokio::test]
async fn http_requests_are_disconnected() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: x\r\n\r\nSET k v\r\n").await;
    client.expect_end().await;
    server.connect().await.ask("GET k", "$-1\r\n").await;
}
