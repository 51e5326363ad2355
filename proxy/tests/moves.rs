//! MOVE while other clients write to both tables, and when it cannot finish.

mod kit;

use bytes::Bytes;
use cluster::{CallError, PartitionId, TableId};
use kit::{Server, World, set};
use row::RowOp;
use row::op::{Op, Request};

const KEY: Bytes = Bytes::from_static(b"k");

/// Both tables have one partition.
async fn start() -> (Server, PartitionId, PartitionId) {
    let server = Server::start().await;
    let [source, target] =
        ["db0", "db1"].map(|name| PartitionId { table: server.world.create(name).id, index: 0 });
    assert_ne!(source.table, TableId(0));
    (server, source, target)
}

fn deletes(request: &Request) -> bool {
    request.ops.iter().any(|op| matches!(op, Op::Row(RowOp::Delete { .. })))
}

/// Runs `others` each time that MOVE is about to delete the row from its source.
fn before_each_delete(
    server: &Server,
    source: PartitionId,
    mut others: impl FnMut(&World, usize) -> Option<CallError> + Send + 'static,
) {
    let mut times = 0;
    *server.world.interposed.lock() = Some(Box::new(move |world, partition, request| {
        if partition != source || !deletes(request) {
            return None;
        }
        times += 1;
        others(world, times)
    }));
}

/// While a client writes the row repeatedly, another has deleted the copy and written a
/// row of its own.
#[tokio::test]
async fn move_never_replaces_or_deletes_writes_to_the_target() {
    for source_goes in [false, true] {
        let (server, source, target) = start().await;
        let mut client = server.connect().await;
        client.ask("SET k 1", "+OK\r\n").await;
        before_each_delete(&server, source, move |world, _| {
            let change = if source_goes {
                Op::Row(RowOp::Delete { key: KEY.into() })
            } else {
                set("k", "2")
            };
            world.write(source, vec![change]);
            world.write(target, vec![Op::Row(RowOp::Delete { key: KEY.into() }), set("k", "mine")]);
            None
        });
        client.ask("MOVE k 1", ":0\r\n").await;
        client.ask("GET k", if source_goes { "$-1\r\n" } else { "$1\r\n2\r\n" }).await;
        client.send("SELECT 1\r\nGET k\r\n").await;
        client.expect("+OK\r\n$4\r\nmine\r\n").await;
    }
}

/// At the second look the copy is still MOVE's own; when MOVE replaces it or deletes it,
/// it no longer is.
#[tokio::test]
async fn copy_replaced_by_another_client_is_kept() {
    for source_goes in [false, true] {
        let (server, source, target) = start().await;
        let mut client = server.connect().await;
        client.ask("SET k 1", "+OK\r\n").await;
        let mut moves = 0;
        *server.world.interposed.lock() = Some(Box::new(move |world, partition, request| {
            let is_conditional = !request.watched.is_empty();
            match () {
                () if partition == source && deletes(request) => {
                    moves += 1;
                    let change = if source_goes {
                        Op::Row(RowOp::Delete { key: KEY.into() })
                    } else {
                        set("k", "2")
                    };
                    if moves == 1 {
                        world.write(source, vec![change]);
                    }
                }
                () if partition == target && is_conditional => {
                    world.write(target, vec![set("k", "mine")])
                }
                () => {}
            }
            None
        }));
        client.ask("MOVE k 1", ":0\r\n").await;
        client.send("SELECT 1\r\nGET k\r\n").await;
        client.expect("+OK\r\n$4\r\nmine\r\n").await;
    }
}

#[tokio::test]
async fn row_that_changes_during_move_moves_in_its_last_state() {
    let (server, source, _) = start().await;
    let mut client = server.connect().await;
    client.ask("SET k 1", "+OK\r\n").await;
    before_each_delete(&server, source, move |world, times| {
        match times {
            1 => world.write(source, vec![set("k", "2")]),
            2 => world.write(source, vec![set("k", "3")]),
            _ => {}
        }
        None
    });
    client.ask("MOVE k 1", ":1\r\n").await;
    client.send("EXISTS k\r\nSELECT 1\r\nGET k\r\n").await;
    client.expect(":0\r\n+OK\r\n$1\r\n3\r\n").await;
    // A row that changes all the time leaves no copy behind.
    client.ask("SELECT 0", "+OK\r\n").await;
    client.ask("SET other 1", "+OK\r\n").await;
    before_each_delete(&server, source, move |world, _| {
        world.write(source, vec![set("other", "2")]);
        None
    });
    client.ask("MOVE other 1", "-ERR the key changes too fast to be moved\r\n").await;
    client.send("EXISTS other\r\nSELECT 1\r\nEXISTS other\r\n").await;
    client.expect(":1\r\n+OK\r\n:0\r\n").await;
}

#[tokio::test]
async fn unfinished_move_reports_where_the_key_is() {
    let (server, source, _) = start().await;
    let mut client = server.connect().await;
    server.world.write(source, vec![set("k", "precious")]);
    client.ask("CONFIG SET call-deadline-ms 1", "+OK\r\n").await;
    before_each_delete(&server, source, |_, _| Some(CallError::NoLeader("node 2 is down".into())));
    let said = client.until("MOVE k 1", "\r\n").await;
    assert_eq!(
        said,
        "-UNKNOWNOUTCOME The key was copied to 'db1' and not deleted from 'db0', it is in both: \
         CLUSTERDOWN The partition has no leader, nothing was done: node 2 is down\r\n"
    );
    *server.world.interposed.lock() = None;
    client.send("GET k\r\nSELECT 1\r\nGET k\r\nDEL k\r\nSELECT 0\r\n").await;
    client.expect("$8\r\nprecious\r\n+OK\r\n$8\r\nprecious\r\n:1\r\n+OK\r\n").await;
    before_each_delete(&server, source, |_, _| {
        Some(CallError::Unknown("the connection was lost".into()))
    });
    let said = client.until("MOVE k 1", "\r\n").await;
    assert!(
        said.starts_with(
            "-UNKNOWNOUTCOME The key was copied to 'db1', and whether it was deleted from 'db0' \
             is not known: "
        ),
        "{said}"
    );
    // Before there is a copy, nothing was done.
    *server.world.interposed.lock() = Some(Box::new(move |_, partition, _| {
        (partition == source).then(|| CallError::NoLeader("x".into()))
    }));
    let said = client.until("MOVE k 1", "\r\n").await;
    assert!(said.starts_with("-CLUSTERDOWN"), "{said}");
}
