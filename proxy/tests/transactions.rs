//! MULTI, EXEC, DISCARD, WATCH as a client sees them.

mod kit;

use std::sync::atomic::Ordering::Relaxed;

use kit::{CROSSSLOT, Server, command};

const QUEUED: &str = "+QUEUED\r\n";

#[tokio::test]
async fn a_transaction_is_one_request() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SET a 1", "+OK\r\n").await;
    let calls = server.world.calls.load(Relaxed);
    client
        .send("MULTI\r\nINCR a\r\nGET a\r\nHSET h f v\r\nINCR h\r\nPING\r\nSET a x BAD\r\nEXEC\r\n")
        .await;
    client.expect(&format!("+OK\r\n{}", QUEUED.repeat(6))).await;
    client
        .expect(
            "*6\r\n:2\r\n$1\r\n2\r\n:1\r\n-WRONGTYPE Operation against a key holding the wrong \
             kind of value\r\n+PONG\r\n",
        )
        .await;
    client.expect("-ERR syntax error\r\n").await;
    assert_eq!(server.world.calls.load(Relaxed), calls + 1);
}

#[tokio::test]
async fn errors_while_queueing_abort() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("MULTI\r\nSET a 1\r\nNOSUCH\r\nEXEC\r\nGET a\r\n").await;
    client
        .expect("+OK\r\n+QUEUED\r\n-ERR unknown command 'NOSUCH', with args beginning with: \r\n")
        .await;
    client.expect("-EXECABORT Transaction discarded because of previous errors.\r\n$-1\r\n").await;
    client.send("MULTI\r\nGET\r\nEXEC\r\n").await;
    client.expect("+OK\r\n-ERR wrong number of arguments for 'get' command\r\n").await;
    client.expect("-EXECABORT Transaction discarded because of previous errors.\r\n").await;
}

#[tokio::test]
async fn misplaced_commands_get_redis_errors() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("EXEC", "-ERR EXEC without MULTI\r\n").await;
    client.ask("DISCARD", "-ERR DISCARD without MULTI\r\n").await;
    client.ask("MULTI", "+OK\r\n").await;
    client
        .ask(
            "EXEC x",
            "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' \
             command\r\n",
        )
        .await;
    client.ask("MULTI", "+OK\r\n").await;
    client.ask("MULTI", "-ERR MULTI calls can not be nested\r\n").await;
    client.ask("WATCH a", "-ERR WATCH inside MULTI is not allowed\r\n").await;
    client.ask("SET a 1", QUEUED).await;
    client.ask("DISCARD", "+OK\r\n").await;
    client.send("GET a\r\nMULTI\r\nEXEC\r\n").await;
    client.expect("$-1\r\n+OK\r\n*0\r\n").await;
}

#[tokio::test]
async fn touched_watched_row_fails_the_transaction() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    client.ask("SET a 1", "+OK\r\n").await;
    client.ask("WATCH a b", "+OK\r\n").await;
    other.ask("SET c 1", "+OK\r\n").await;
    client.send("MULTI\r\nINCR a\r\nEXEC\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n*1\r\n:2\r\n").await;
    client.ask("WATCH a", "+OK\r\n").await;
    other.ask("SET a 9", "+OK\r\n").await;
    client.send("MULTI\r\nINCR a\r\nEXEC\r\nGET a\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n*-1\r\n$1\r\n9\r\n").await;
    // EXEC clears the watch; so do UNWATCH and DISCARD.
    for forget in ["UNWATCH", "MULTI\r\nDISCARD"] {
        client.ask("WATCH a", "+OK\r\n").await;
        other.ask("INCR a", if forget == "UNWATCH" { ":10\r\n" } else { ":11\r\n" }).await;
        client.send(format!("{forget}\r\nMULTI\r\nGET b\r\nEXEC\r\n")).await;
        client.expect(if forget == "UNWATCH" { "+OK\r\n" } else { "+OK\r\n+OK\r\n" }).await;
        client.expect("+OK\r\n+QUEUED\r\n*1\r\n$-1\r\n").await;
    }
    // A transaction without rows checks the watch as well.
    client.ask("WATCH a", "+OK\r\n").await;
    other.ask("DEL a", ":1\r\n").await;
    client.send("MULTI\r\nPING\r\nEXEC\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n*-1\r\n").await;
}

#[tokio::test]
async fn watched_row_of_a_table_created_since_counts_as_touched() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    client.send("SELECT 4\r\nWATCH a\r\n").await;
    client.expect("+OK\r\n+OK\r\n").await;
    other.send("SELECT 4\r\nSET a 1\r\n").await;
    other.expect("+OK\r\n+OK\r\n").await;
    client.send("MULTI\r\nSET a 2\r\nEXEC\r\nGET a\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n*-1\r\n$1\r\n1\r\n").await;
}

#[tokio::test]
async fn watched_row_of_a_missing_table_is_untouched_until_written() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("SELECT 9\r\nWATCH k\r\nMULTI\r\nSET k v\r\nEXEC\r\nGET k\r\n").await;
    client.expect(&format!("+OK\r\n+OK\r\n+OK\r\n{QUEUED}*1\r\n+OK\r\n$1\r\nv\r\n")).await;
    server.world.drop_table("db9");
    client.send("WATCH k\r\nMULTI\r\nGET k\r\nSET other v\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n+OK\r\n{QUEUED}{QUEUED}*2\r\n$-1\r\n+OK\r\n")).await;
    // Another client creates the table and writes the row between the look-up and the
    // creation.
    client.ask("SELECT 10", "+OK\r\n").await;
    *server.world.overtakes.lock() = Some(("k", "1"));
    client.send("WATCH k\r\nMULTI\r\nSET k 2\r\nEXEC\r\nGET k\r\n").await;
    client.expect(&format!("+OK\r\n+OK\r\n{QUEUED}*-1\r\n$1\r\n1\r\n")).await;
}

#[tokio::test]
async fn watched_row_of_a_dropped_table_counts_as_touched() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for made_anew in [false, true] {
        client.send("SELECT 3\r\nSET k 1\r\nWATCH k\r\n").await;
        client.expect("+OK\r\n+OK\r\n+OK\r\n").await;
        server.world.drop_table("db3");
        if made_anew {
            server.world.create("db3");
        }
        client.send("MULTI\r\nSET k 2\r\nEXEC\r\n").await;
        client.expect(&format!("+OK\r\n{QUEUED}*-1\r\n")).await;
        assert_eq!(
            server.world.names().len(),
            usize::from(made_anew),
            "what comes to nothing makes no table"
        );
    }
}

#[tokio::test]
async fn failed_transaction_creates_no_table() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let crossslot = format!("-{CROSSSLOT}\r\n");
    client.send("MULTI\r\nSET a 1\r\nSELECT 5\r\nSET a 1\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{}{crossslot}", QUEUED.repeat(3))).await;
    assert!(server.world.names().is_empty(), "{:?}", server.world.names());
    client.send("SET a 1\r\nMULTI\r\nGET a\r\nSELECT 5\r\nSET a 1\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n+OK\r\n{}{crossslot}", QUEUED.repeat(3))).await;
    client.send("WATCH a\r\nSELECT 5\r\nMULTI\r\nSET a 1\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n+OK\r\n+OK\r\n{QUEUED}{crossslot}")).await;
    assert_eq!(server.world.names(), ["db0"]);
}

#[tokio::test]
async fn resp3_has_one_null() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    client.until("HELLO 3", "modules\r\n*0\r\n").await;
    client.ask("SET a 1", "+OK\r\n").await;
    client.ask("WATCH a", "+OK\r\n").await;
    other.ask("SET a 2", "+OK\r\n").await;
    client.send("MULTI\r\nGET a\r\nEXEC\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n_\r\n").await;
}

#[tokio::test]
async fn refused_cross_partition_exec_creates_no_table() {
    let server = Server::with(4, |_| {}).await;
    let mut client = server.connect().await;
    // `a` and `b` are in different quarters of the slots.
    let crossslot = format!("-{CROSSSLOT}\r\n");
    for queued in [
        &["SET a 1", "SET b 1"][..],
        &["SET a 1", "GET b"],
        &["SET a 1", "DBSIZE"],
        &["MSETNX a 1 b 2"],
        &["SET a 1", "KEYS *"],
    ] {
        client.ask("MULTI", "+OK\r\n").await;
        for command in queued {
            client.ask(command, QUEUED).await;
        }
        client.ask("EXEC", &crossslot).await;
    }
    client.ask("WATCH b", "+OK\r\n").await;
    client.send("MULTI\r\nSET a 1\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{QUEUED}{crossslot}")).await;
    client.ask("MSETNX a 1 b 2", &crossslot).await;
    assert!(server.world.names().is_empty(), "{:?}", server.world.names());
    // Tables created by other clients stay as they are.
    client
        .send("SELECT 1\r\nMULTI\r\nSET {a}1 1\r\nSET {a}2 1\r\nEXEC\r\nMSETNX {a}3 1 {a}4 1\r\n")
        .await;
    client.expect(&format!("+OK\r\n+OK\r\n{}*2\r\n+OK\r\n+OK\r\n:1\r\n", QUEUED.repeat(2))).await;
    assert_eq!(server.world.names(), ["db1"]);
    let one = Server::with(1, |_| {}).await;
    let mut client = one.connect().await;
    client.send("MULTI\r\nSET a 1\r\nSET b 1\r\nEXEC\r\nSELECT 1\r\nMSETNX a 1 b 2\r\n").await;
    client.expect(&format!("+OK\r\n{}*2\r\n+OK\r\n+OK\r\n+OK\r\n:1\r\n", QUEUED.repeat(2))).await;
}

#[tokio::test]
async fn rows_of_several_partitions_are_refused_as_a_whole() {
    let server = Server::with(4, |_| {}).await;
    let mut client = server.connect().await;
    // `a` and `b` are in different quarters of the slots.
    client.send("MULTI\r\nSET a 1\r\nSET b 1\r\nEXEC\r\nGET a\r\n").await;
    client.expect(&format!("+OK\r\n+QUEUED\r\n+QUEUED\r\n-{CROSSSLOT}\r\n$-1\r\n")).await;
    client.send("MULTI\r\nSET {x}a 1\r\nSET {x}b 2\r\nEXEC\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n").await;
    client.send("MULTI\r\nDBSIZE\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n+QUEUED\r\n-{CROSSSLOT}\r\n")).await;
}

#[tokio::test]
async fn whole_table_commands_run_in_exec_with_one_partition() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client
        .send(
            "MULTI\r\nSET a 1\r\nDBSIZE\r\nKEYS *\r\nSCAN \
             0\r\nRANDOMKEY\r\nFLUSHDB\r\nDBSIZE\r\nSET b 1\r\nEXEC\r\nGET b\r\n",
        )
        .await;
    client.expect(&format!("+OK\r\n{}", QUEUED.repeat(8))).await;
    client
        .expect(
            "*8\r\n+OK\r\n:1\r\n*1\r\n$1\r\na\r\n*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n$1\r\na\r\n+OK\
             \r\n:0\r\n+OK\r\n$1\r\n1\r\n",
        )
        .await;
}

#[tokio::test]
async fn select_within_a_transaction_holds_for_what_follows_it() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("SELECT 2\r\nSET a 2\r\nSELECT 0\r\n").await;
    client.expect("+OK\r\n+OK\r\n+OK\r\n").await;
    client.send("MULTI\r\nSELECT 2\r\nGET a\r\nEXEC\r\nGET a\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n$1\r\n2\r\n$1\r\n2\r\n").await;
    // A refused transaction changes nothing in the table.
    client.send("SET a 3\r\nMULTI\r\nGET a\r\nSELECT 0\r\nSET a 1\r\nEXEC\r\nGET a\r\n").await;
    client.expect("+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n").await;
    client.expect(&format!("-{CROSSSLOT}\r\n$1\r\n3\r\n")).await;
}

#[tokio::test]
async fn reset_leaves_the_transaction() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("MULTI\r\nSET a 1\r\nRESET\r\nEXEC\r\nGET a\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n+RESET\r\n-ERR EXEC without MULTI\r\n$-1\r\n").await;
}

#[tokio::test]
async fn exec_finds_tables_created_through_another_proxy() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SELECT 3", "+OK\r\n").await;
    server.world.create_elsewhere("db3", "a", "1");
    client.send("MULTI\r\nGET a\r\nDBSIZE\r\nDEL a\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{}*3\r\n$1\r\n1\r\n:1\r\n:1\r\n", QUEUED.repeat(3))).await;
    // A table that this transaction creates is created before anything is read of it.
    client.ask("SELECT 4", "+OK\r\n").await;
    client.send("MULTI\r\nGET a\r\nSET b 1\r\nGET b\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{}*3\r\n$-1\r\n+OK\r\n$1\r\n1\r\n", QUEUED.repeat(3))).await;
    server.world.forget_table("db4");
    client.send("MULTI\r\nGET b\r\nSET b 2\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{}*2\r\n$1\r\n1\r\n+OK\r\n", QUEUED.repeat(2))).await;
    // A newly found table name holds for the commands after it.
    server.world.create_elsewhere("users", "u", "1");
    client.send("MULTI\r\nSELECT users\r\nGET u\r\nEXEC\r\nGET u\r\n").await;
    client.expect(&format!("+OK\r\n{}*2\r\n+OK\r\n$1\r\n1\r\n$1\r\n1\r\n", QUEUED.repeat(2))).await;
    client.send("MULTI\r\nSELECT nobody\r\nGET u\r\nEXEC\r\n").await;
    client
        .expect(&format!(
            "+OK\r\n{}*2\r\n-ERR no such table 'nobody'\r\n$1\r\n1\r\n",
            QUEUED.repeat(2)
        ))
        .await;
}

#[tokio::test]
async fn watch_sees_tables_created_through_another_proxy() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    // Missing at WATCH, created since.
    client.send("SELECT 3\r\nWATCH a\r\n").await;
    client.expect("+OK\r\n+OK\r\n").await;
    server.world.create_elsewhere("db3", "a", "1");
    client.send("MULTI\r\nPING\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{QUEUED}*-1\r\n")).await;
    // Existing at WATCH, though unknown to the proxy.
    client.ask("WATCH a", "+OK\r\n").await;
    client.send("MULTI\r\nGET a\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{QUEUED}*1\r\n$1\r\n1\r\n")).await;
    client.ask("WATCH a", "+OK\r\n").await;
    let mut other = server.connect().await;
    other.send("SELECT 3\r\nSET a 2\r\n").await;
    other.expect("+OK\r\n+OK\r\n").await;
    client.send("MULTI\r\nGET a\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n{QUEUED}*-1\r\n")).await;
    // Still missing, so untouched.
    client.send("SELECT 5\r\nWATCH a\r\nMULTI\r\nGET a\r\nEXEC\r\n").await;
    client.expect(&format!("+OK\r\n+OK\r\n+OK\r\n{QUEUED}*1\r\n$-1\r\n")).await;
}

#[tokio::test]
async fn keys_come_whole_or_not_at_all() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let names: Vec<String> = (0..10_001).map(|number| format!("k{number}")).collect();
    let argv: Vec<&str> =
        ["MSET"].into_iter().chain(names.iter().flat_map(|name| [name.as_str(), "v"])).collect();
    client.send(command(&argv)).await;
    client.expect("+OK\r\n").await;
    let refused = "-ERR too many rows for KEYS in a transaction, use SCAN\r\n";
    client.send("MULTI\r\nKEYS *\r\nKEYS k7\r\nDEL k0\r\nKEYS *\r\nKEYS k7\r\nEXEC\r\n").await;
    client
        .expect(&format!("+OK\r\n{}*5\r\n{refused}{refused}:1\r\n*10000\r\n", QUEUED.repeat(5)))
        .await;
    for _ in 0..10_000 {
        client.until("", "\r\n").await;
        client.until("", "\r\n").await;
    }
    client.expect("*1\r\n$2\r\nk7\r\n").await;
}

#[tokio::test]
async fn queued_commands_and_watched_keys_are_bounded() {
    let server = Server::with(1, |settings| settings.query_bytes_max = 100_000).await;
    let mut client = server.connect().await;
    client.ask("SET a 1", "+OK\r\n").await;
    // An argument counts for 200 bytes besides its own.
    client
        .send("MULTI\r\n".to_owned() + &"GET a\r\n".repeat(248) + "GET a\r\nGET a\r\nEXEC\r\n")
        .await;
    client.expect(&format!("+OK\r\n{}", QUEUED.repeat(247))).await;
    let limit = "client-query-buffer-limit (100000 bytes; CONFIG SET changes it)";
    client
        .expect(&format!("-ERR transaction is larger than {limit}\r\n+QUEUED\r\n+QUEUED\r\n"))
        .await;
    client.expect("-EXECABORT Transaction discarded because of previous errors.\r\n").await;
    // A watched key counts for its bytes and 256.
    let key = "k".repeat(60_000);
    client.ask(&format!("WATCH {key}"), "+OK\r\n").await;
    client
        .ask(
            &format!("WATCH {key}"),
            &format!("-ERR too many watched keys: they take more than {limit}\r\n"),
        )
        .await;
    client.ask("UNWATCH", "+OK\r\n").await;
    client.ask(&format!("WATCH {key}"), "+OK\r\n").await;
    client.send("EXEC\r\nMULTI\r\nGET a\r\nEXEC\r\n").await;
    client.expect("-ERR EXEC without MULTI\r\n+OK\r\n+QUEUED\r\n*1\r\n$1\r\n1\r\n").await;
}

/// Forbidden commands are refused when they are queued, also with other errors in them.
#[tokio::test]
async fn forbidden_commands_are_refused_even_with_wrong_options() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for line in [
        "SHUTDOWN FOO",
        "SHUTDOWN NOSAVE",
        "FLUSHALL",
        "FLUSHALL FOO",
        "MOVE k 1",
        "MOVE k x",
        "COPY a b DB 1",
    ] {
        client.ask("MULTI", "+OK\r\n").await;
        client.ask(line, "-ERR Command not allowed inside a transaction\r\n").await;
        client
            .ask("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n")
            .await;
    }
}
