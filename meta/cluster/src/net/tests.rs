//! Tests of a connection's inner state: what it keeps and what it releases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{CallRefused, Connection};
use super::frame::{FrameKind, decode};
use super::{NetError, Peer, Service};
use crate::ServerId;

/// A connection whose writer is this test.
fn connection() -> Arc<Connection> {
    let peer = Peer {
        server: ServerId(2),
        cluster: None,
        address: String::new(),
        remote: ([127, 0, 0, 1], 1).into(),
    };
    Connection::new(peer, 1 << 20, None, &CancellationToken::new())
}

/// Kinds of the frames that would be written now.
fn taken(connection: &Connection) -> Vec<FrameKind> {
    let mut wire = bytes::BytesMut::new();
    while let Some(mut batch) = connection.take() {
        while !batch.is_empty() {
            let all: Vec<u8> = batch.slices().flat_map(|slice| slice.to_vec()).collect();
            wire.extend_from_slice(&all);
            batch.advance(all.len());
        }
        connection.written(batch);
    }
    let mut kinds = Vec::new();
    while let Some(frame) = decode(&mut wire, 1 << 20).unwrap() {
        kinds.push(frame.header.kind);
    }
    kinds
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

#[tokio::test]
async fn a_request_that_was_not_written_is_not_sent() {
    let connection = connection();
    let ask = || connection.call(Service::Rows, &Bytes::from_static(b"x")).ok().unwrap();
    // Time is over: before and after it was taken.
    assert!(matches!(ask().answer(soon()).await, Err(NetError::NotSent(_))));
    assert_eq!(taken(&connection), [FrameKind::Cancelled]);
    let call = ask();
    assert_eq!(taken(&connection), [FrameKind::Call]);
    assert!(matches!(call.answer(soon()).await, Err(NetError::Lost(_))));
    // The connection is lost: the same.
    let handed_over = ask();
    assert_eq!(taken(&connection), [FrameKind::Call]);
    let waiting = ask();
    connection.close("test");
    assert!(matches!(handed_over.answer(soon()).await, Err(NetError::Lost(_))));
    assert!(matches!(waiting.answer(soon()).await, Err(NetError::NotSent(_))));
    assert!(matches!(connection.call(Service::Rows, &Bytes::new()), Err(CallRefused::Gone(_))));
    assert!(connection.takes_no_calls());
}

#[tokio::test]
async fn cancelled_calls_leave_nothing_behind() {
    let connection = connection();
    let mut answers = Vec::new();
    for round in 0..100u64 {
        let call = connection.call(Service::Rows, &Bytes::from(vec![1; 20_000])).ok().unwrap();
        if round % 2 == 1 {
            assert_eq!(taken(&connection), [FrameKind::Cancelled, FrameKind::Call]);
        }
        drop(call);
        assert_eq!(connection.pending(), 0);
        // A late answer, to a place that a newer call has.
        answers.push((round << 32, Ok(Bytes::new())));
    }
    let newer = connection.call(Service::Rows, &Bytes::new()).ok().unwrap();
    connection.complete_calls(&mut answers);
    assert_eq!(connection.pending(), 1);
    connection.complete_calls(&mut vec![(100 << 32, Ok(Bytes::from_static(b"yes")))]);
    assert_eq!(newer.answer(soon()).await.unwrap(), "yes");
    assert_eq!(connection.pending(), 0);
}

/// Callers wait while much is to be written, and are let in again when it was taken.
#[tokio::test]
async fn a_full_outbox_holds_callers_back() {
    let connection = connection();
    let body = Bytes::from(vec![1; 1 << 20]);
    let calls: Vec<_> = (0..4).map(|_| connection.call(Service::Rows, &body)).collect();
    let Err(CallRefused::Full(room)) = connection.call(Service::Rows, &body) else {
        panic!("full")
    };
    let mut room = Box::pin(room);
    assert!(tokio::time::timeout(Duration::from_millis(10), &mut room).await.is_err());
    assert!(calls.iter().all(Result::is_ok));
    assert_eq!(taken(&connection).len(), 4);
    tokio::time::timeout(Duration::from_secs(5), room).await.unwrap();
    assert!(connection.call(Service::Rows, &body).is_ok());
}
