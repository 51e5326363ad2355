//! Channels between processes: messages both ways, ends, and bounds.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail here")]

#[allow(dead_code, reason = "each test file uses its part")]
#[path = "net/kit.rs"]
mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::ServerId;
use cluster::net::{Channel, Net, NetError, Service};
use kit::{LONG, Served, Wire, ask, options, pair, serve, two};
use tokio::time::timeout;

async fn both_ends(net: &Arc<Net>, served: &mut Served) -> (Channel, Channel) {
    let ours = net.open(two(), Service::Meta, "hello".into()).await.unwrap();
    let (service, hello, theirs) = timeout(LONG, served.channels.recv()).await.unwrap().unwrap();
    assert_eq!((service, &hello[..]), (Service::Meta, &b"hello"[..]));
    assert_eq!((theirs.peer().server, ours.peer().server), (ServerId(1), ServerId(2)));
    (ours, theirs)
}

async fn next(channel: &mut Channel) -> Option<Bytes> {
    timeout(LONG, channel.recv()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_in_order() {
    let (net, mut served) = pair().await;
    let (ours, theirs) = both_ends(&net, &mut served).await;
    let (other, mut other_end) = both_ends(&net, &mut served).await;
    // More than the windows hold, of all sizes.
    let message = |at: u32| {
        Bytes::from([&at.to_le_bytes()[..], &vec![at as u8; (at as usize * 7919) % 3000]].concat())
    };
    let mut tasks = Vec::new();
    for channel in [ours, theirs] {
        let (sender, mut receiver) = channel.split();
        tasks.push(tokio::spawn(async move {
            let sending = async {
                for at in 0..3000 {
                    sender.send(message(at)).await.unwrap();
                }
            };
            timeout(LONG, async { tokio::join!(sending, receive(&mut receiver, message)) })
                .await
                .unwrap();
            // Until the other side has read everything, too.
            (sender, receiver)
        }));
    }
    let mut ends = Vec::new();
    for task in tasks {
        ends.push(task.await.unwrap());
    }
    other.send("another".into()).await.unwrap();
    assert_eq!(next(&mut other_end).await.unwrap(), "another");
}

async fn receive(receiver: &mut cluster::net::ChannelReceiver, message: impl Fn(u32) -> Bytes) {
    for at in 0..3000 {
        assert!(receiver.recv().await.unwrap() == message(at), "message {at}");
    }
}

#[tokio::test]
async fn the_end_of_either_side_is_seen_by_the_other() {
    let (net, mut served) = pair().await;
    // The dialer ends: what it sent comes first.
    let (ours, mut theirs) = both_ends(&net, &mut served).await;
    ours.send("last".into()).await.unwrap();
    drop(ours);
    assert_eq!(next(&mut theirs).await.unwrap(), "last");
    assert_eq!(next(&mut theirs).await, None);
    assert!(matches!(theirs.send("x".into()).await, Err(NetError::NotSent(_))));
    assert_eq!(theirs.failure(), None);
    // The acceptor ends.
    let (mut ours, theirs) = both_ends(&net, &mut served).await;
    drop(theirs);
    assert_eq!(next(&mut ours).await, None);
    assert!(matches!(ours.send("x".into()).await, Err(NetError::NotSent(_))));
    // One half ends, the other goes on.
    let (mut ours, theirs) = both_ends(&net, &mut served).await;
    let (sender, receiver) = theirs.split();
    drop(receiver);
    sender.send("still".into()).await.unwrap();
    assert_eq!(next(&mut ours).await.unwrap(), "still");
    assert!(matches!(ours.send("x".into()).await, Err(NetError::NotSent(_))));
    drop(sender);
    assert_eq!(next(&mut ours).await, None);
    // The connection itself was never at stake.
    ask(&net, "now").await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_ends_channels_and_says_why() {
    let mut served = serve(options(2)).await;
    let wire = Wire::to(&served.address).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &wire.address);
    let (mut ours, mut theirs) = both_ends(&net, &mut served).await;
    wire.cut();
    for end in [&mut ours, &mut theirs] {
        assert_eq!(next(end).await, None);
        assert!(end.failure().is_some());
        assert!(matches!(end.send("x".into()).await, Err(NetError::NotSent(_))));
    }
    both_ends(&net, &mut served).await;
}

/// A consumer that does not read stops its sender at the window; calls and other channels
/// of the same connection go on.
#[tokio::test]
async fn a_slow_consumer_holds_its_sender_back() {
    let (net, mut served) = pair().await;
    let (ours, mut theirs) = both_ends(&net, &mut served).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counting = sent.clone();
    let sending = tokio::spawn(async move {
        for _ in 0..4000 {
            ours.send(Bytes::from(vec![1; 1000])).await.unwrap();
            counting.fetch_add(1, Ordering::SeqCst);
        }
        ours
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let held = sent.load(Ordering::SeqCst);
    assert!((100..=512 * 1024 / 1000 + 1).contains(&held), "{held} messages were let through");
    ask(&net, "now").await.unwrap();
    let (other, mut other_end) = both_ends(&net, &mut served).await;
    other.send("passes".into()).await.unwrap();
    assert_eq!(next(&mut other_end).await.unwrap(), "passes");
    // Empty messages count, too.
    let filling = timeout(Duration::from_millis(500), async {
        for at in 0.. {
            other.send(Bytes::new()).await.unwrap();
            assert!(at < 10_000, "nothing holds it back");
        }
    });
    assert!(filling.await.is_err());
    for _ in 0..4000 {
        assert_eq!(next(&mut theirs).await.unwrap().len(), 1000);
    }
    let ours = timeout(LONG, sending).await.unwrap().unwrap();
    drop(ours);
    assert_eq!(next(&mut theirs).await, None);
}

#[tokio::test]
async fn messages_larger_than_the_window_pass_one_at_a_time() {
    let (net, mut served) = pair().await;
    let (ours, mut theirs) = both_ends(&net, &mut served).await;
    let sending = tokio::spawn(async move {
        for _ in 0..5 {
            ours.send(Bytes::from(vec![2; 3 << 20])).await.unwrap();
        }
        let error = ours.send(Bytes::from(vec![2; (64 << 20) + 1])).await;
        assert!(matches!(error, Err(NetError::TooLarge(_))));
    });
    for _ in 0..5 {
        assert_eq!(next(&mut theirs).await.unwrap().len(), 3 << 20);
    }
    sending.await.unwrap();
    assert_eq!(next(&mut theirs).await, None);
}

#[tokio::test]
async fn more_channels_than_there_may_be_are_ended() {
    let (net, mut served) = pair().await;
    let mut open = Vec::new();
    for _ in 0..4096 {
        open.push(net.open(two(), Service::Meta, Bytes::new()).await.unwrap());
    }
    let mut one_more = net.open(two(), Service::Meta, Bytes::new()).await.unwrap();
    let mut theirs = Vec::new();
    while theirs.len() < 4096 {
        theirs.push(timeout(LONG, served.channels.recv()).await.unwrap().unwrap());
    }
    assert_eq!(next(&mut one_more).await, None);
    assert!(one_more.failure().is_none());
    open.clear();
    ask(&net, "now").await.unwrap();
    both_ends(&net, &mut served).await;
}
