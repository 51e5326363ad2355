//! Calls between processes: answers, refusals, and what is known when there is none.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail here")]

#[allow(dead_code, reason = "each test file uses its part")]
#[path = "net/kit.rs"]
mod kit;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::ServerId;
use cluster::net::{Destination, Net, NetError, NetOptions, Service};
use futures::stream::{FuturesUnordered, StreamExt};
use kit::{LONG, Wire, ask, free_address, options, pair, serve, serve_at, two, until};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_call_is_answered_now_or_later_or_refused() {
    let (net, served) = pair().await;
    assert_eq!(ask(&net, "now").await.unwrap(), "now");
    assert_eq!(ask(&net, "later").await.unwrap(), "later");
    assert_eq!(ask(&net, "?").await, Err(NetError::Refused("refused on purpose".to_owned())));
    assert_eq!(ask(&net, "").await, Err(NetError::Refused("refused on purpose".to_owned())));
    assert_eq!(
        ask(&net, "panic").await,
        Err(NetError::Refused("the service has broken off".to_owned()))
    );
    assert_eq!(ask(&net, "me").await.unwrap(), "0000000000000001 None host1:1 Rows");
    let by_address = net
        .call(Destination::Address(served.address.clone()), Service::Meta, "me".into(), LONG)
        .await;
    assert_eq!(by_address.unwrap(), "0000000000000001 None host1:1 Meta");
    assert_eq!(ask(&net, "now").await.unwrap(), "now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_are_answered_in_any_order() {
    let (net, served) = pair().await;
    let mut calls: FuturesUnordered<_> = (0..2000u16)
        .map(|at| {
            let net = net.clone();
            async move {
                let wait = ((u32::from(at) * 7919) % 50) as u16;
                let body = [
                    &[b"nlw"[usize::from(at) % 3]][..],
                    &wait.to_le_bytes(),
                    &at.to_le_bytes(),
                    &vec![1; usize::from(at)],
                ]
                .concat();
                (ask(&net, body.clone()).await, Bytes::from(body), at)
            }
        })
        .collect();
    let mut order = Vec::new();
    while let Some((answer, body, at)) = calls.next().await {
        assert_eq!(answer.unwrap(), body);
        order.push(at);
    }
    assert!(!order.is_sorted() && order.len() == 2000);
    assert_eq!(served.echo.calls.load(Ordering::SeqCst), 2000);
}

#[tokio::test]
async fn large_frames_pass_and_larger_ones_are_refused() {
    let mut small = options(2);
    small.frame_bytes_max = 1 << 20;
    let served = serve(small).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &served.address);
    let large = Bytes::from([b"n", &vec![3; (1 << 20) - 1][..]].concat());
    assert_eq!(ask(&net, large.clone()).await.unwrap(), large);
    let Err(NetError::TooLarge(why)) = ask(&net, [&large[..], b"."].concat()).await else {
        panic!("not sent")
    };
    assert!(why.contains("1048577") && why.contains("1048576"), "{why}");
    // Answers go by what the dialer takes: 64 MiB.
    let bytes = |count: u32| Bytes::from([b"b", &count.to_le_bytes()[..]].concat());
    assert_eq!(ask(&net, bytes(40 << 20)).await.unwrap().len(), 40 << 20);
    let Err(NetError::Refused(why)) = ask(&net, bytes((64 << 20) + 1)).await else {
        panic!("refused")
    };
    assert!(why.contains("67108865"), "{why}");
    assert_eq!(ask(&net, "now").await.unwrap(), "now");
}

#[tokio::test]
async fn raft_and_bulk_have_connections_of_their_own() {
    let (net, _served) = pair().await;
    for service in [Service::RaftBulk, Service::Raft, Service::Meta] {
        net.call(two(), service, "n".into(), LONG).await.unwrap();
        assert!(!net.is_connected(&two()));
    }
    net.call(two(), Service::Rows, "n".into(), LONG).await.unwrap();
    assert!(net.is_connected(&two()));
}

/// Whatever the clients' runtime is busy with, Raft's messages are handled.
#[test]
fn raft_is_served_while_the_other_runtime_is_stuck() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let (clients, raft) = (runtime(), runtime());
    let with_raft =
        |server| NetOptions { raft_runtime: Some(raft.handle().clone()), ..options(server) };
    let (served, net) = clients.block_on(async {
        let served = serve(with_raft(2)).await;
        let net = Net::new(with_raft(1)).unwrap();
        net.set_address(ServerId(2), &served.address);
        net.call(two(), Service::Raft, "n".into(), LONG).await.unwrap();
        (served, net)
    });
    let (free, stuck) = std::sync::mpsc::channel::<()>();
    clients.spawn(async move { stuck.recv() });
    raft.block_on(async {
        for _ in 0..100 {
            net.call(two(), Service::Raft, "n".into(), LONG).await.unwrap();
        }
    });
    drop(free);
    drop(served);
}

/// A call that a stopping process leaves unanswered is no refusal, which would be the
/// last word on it.
#[test]
fn a_call_that_a_stopping_process_drops_is_lost() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let (callers, servers) = (runtime(), runtime());
    let served = servers.block_on(serve(options(2)));
    let (calls, net) = callers.block_on(async {
        let net = Net::new(options(1)).unwrap();
        net.set_address(ServerId(2), &served.address);
        let ask = |net: std::sync::Arc<Net>| async move { ask(&net, "silence").await };
        let calls: Vec<_> = (0..20).map(|_| tokio::spawn(ask(net.clone()))).collect();
        until("the calls have come", || served.echo.calls.load(Ordering::SeqCst) == 20).await;
        (calls, net)
    });
    servers.shutdown_background();
    callers.block_on(async {
        for call in calls {
            let answer = call.await.unwrap();
            assert!(matches!(answer, Err(NetError::Lost(_))), "{answer:?}");
        }
    });
    drop((net, served));
}

/// A long command at one server: what others asked of it is answered late and not lost,
/// and everything else goes on.
#[test]
fn a_service_that_blocks_silences_no_connection() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let (rows, net) = (runtime(), runtime());
    let quick = |server| NetOptions {
        rows_runtime: Some(rows.handle().clone()),
        ping_every: Duration::from_millis(50),
        ..options(server)
    };
    net.block_on(async {
        let served = serve(quick(2)).await;
        let client = Net::new(quick(1)).unwrap();
        client.set_address(ServerId(2), &served.address);
        ask(&client, "now").await.unwrap();
        let started = Instant::now();
        let long = tokio::spawn({
            let client = client.clone();
            let body = Bytes::from([b"h", &1500u16.to_le_bytes()[..]].concat());
            async move { ask(&client, body).await }
        });
        until("it has begun", || served.echo.calls.load(Ordering::SeqCst) == 2).await;
        // More than are read ahead.
        let mut behind = Vec::new();
        for _ in 0..60 {
            let client = client.clone();
            behind.push(tokio::spawn(async move { ask(&client, "n behind it").await }));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Meta is heard, over a connection that is made now.
        client.call(two(), Service::Meta, "n".into(), LONG).await.unwrap();
        let other = Net::new(quick(3)).unwrap();
        other.set_address(ServerId(2), &served.address);
        let greeted = tokio::spawn(async move { ask(&other, "n").await });
        assert!(started.elapsed() < Duration::from_millis(1000), "none of this waits");
        long.await.unwrap().unwrap();
        assert!(started.elapsed() >= Duration::from_millis(1500));
        for call in behind {
            assert_eq!(call.await.unwrap().unwrap(), "n behind it");
        }
        greeted.await.unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_killed_server_leaves_its_calls_lost() {
    let served = serve(options(2)).await;
    let wire = Wire::to(&served.address).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &wire.address);
    let call = tokio::spawn({
        let net = net.clone();
        async move { ask(&net, "silence").await }
    });
    until("the call has come", || served.echo.calls.load(Ordering::SeqCst) == 1).await;
    wire.cut();
    assert!(matches!(call.await.unwrap(), Err(NetError::Lost(_))));
    // It is made again at once.
    assert_eq!(ask_again(&net).await, 0);
}

/// Asks until it is answered, and counts the failures, which must all be safe to try
/// again.
async fn ask_again(net: &std::sync::Arc<Net>) -> usize {
    let started = Instant::now();
    let mut failures = 0;
    loop {
        match ask(net, "now").await {
            Ok(_) => return failures,
            Err(NetError::NotSent(_)) => failures += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(started.elapsed() < LONG, "it never comes back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_down_fails_fast_and_is_found_again() {
    let net = Net::new(options(1)).unwrap();
    assert!(
        matches!(ask(&net, "now").await, Err(NetError::NotSent(why)) if why.contains("no address"))
    );
    let address = free_address().await;
    net.set_address(ServerId(2), &address);
    for _ in 0..300 {
        let started = Instant::now();
        let error = ask(&net, "now").await.unwrap_err();
        assert!(matches!(error, NetError::NotSent(_)), "{error}");
        assert!(started.elapsed() < Duration::from_millis(500), "it took {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let served = serve_at(options(2), &address).await;
    let back = Instant::now();
    ask_again(&net).await;
    assert!(back.elapsed() < Duration::from_millis(600), "it took {:?}", back.elapsed());
    drop(served);
}

#[tokio::test]
async fn an_address_may_change() {
    let first = serve(options(2)).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &free_address().await);
    assert!(matches!(ask(&net, "now").await, Err(NetError::NotSent(_))));
    net.set_address(ServerId(2), &first.address);
    ask_again(&net).await;
    first.stop.cancel();
    first.serving.await.unwrap();
    let second = serve(options(2)).await;
    net.set_address(ServerId(2), &second.address.replace("127.0.0.1", "localhost"));
    ask_again(&net).await;
    assert_eq!(second.echo.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn ipv6_is_served() {
    let Ok(_) = TcpListener::bind("[::1]:0").await else { return };
    let served = serve_at(options(2), "[::1]:0").await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &served.address);
    assert_eq!(ask(&net, "now").await.unwrap(), "now");
}

/// A peer that accepts and never sends a byte: nothing was sent, and no other call waits.
#[tokio::test]
async fn a_peer_without_handshake_delays_no_other() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (net, _served) = pair().await;
    net.set_address(ServerId(3), &mute.local_addr().unwrap().to_string());
    let to_mute = net.call(
        Destination::Server(ServerId(3)),
        Service::Rows,
        "now".into(),
        Duration::from_millis(300),
    );
    let to_other = async {
        let started = Instant::now();
        ask(&net, "now").await.unwrap();
        started.elapsed()
    };
    let (mute, other) = tokio::join!(to_mute, to_other);
    assert!(matches!(mute, Err(NetError::NotSent(_))), "{mute:?}");
    assert!(other < Duration::from_millis(250), "it took {other:?}");
}

/// The network swallows everything: what was sent is lost at its deadline, the connection
/// is found dead within 2.4 s without any traffic, and it is made again.
#[tokio::test]
async fn a_silent_death_is_noticed() {
    let served = serve(options(2)).await;
    let wire = Wire::to(&served.address).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &wire.address);
    ask(&net, "now").await.unwrap();
    wire.freeze();
    let frozen = Instant::now();
    let asked = net.call(two(), Service::Rows, "now".into(), Duration::from_millis(200)).await;
    assert!(matches!(asked, Err(NetError::Lost(_))), "{asked:?}");
    let late = ask(&net, "now").await;
    assert!(matches!(late, Err(NetError::Lost(_))), "{late:?}");
    assert!((1900..3000).contains(&frozen.elapsed().as_millis()), "it took {:?}", frozen.elapsed());
    let down = net.call(two(), Service::Rows, "now".into(), Duration::from_millis(200)).await;
    assert!(matches!(down, Err(NetError::NotSent(_))), "{down:?}");
    wire.cut();
    wire.thaw();
    let thawed = Instant::now();
    ask_again(&net).await;
    assert!(thawed.elapsed() < Duration::from_secs(1), "it took {:?}", thawed.elapsed());
    let calls = served.echo.calls.load(Ordering::SeqCst);
    assert_eq!(calls, 2, "what vanished was not served");
}

/// An idle but live connection stays.
#[tokio::test]
async fn an_idle_connection_lives() {
    let mut quick = options(2);
    quick.ping_every = Duration::from_millis(40);
    let served = serve(quick.clone()).await;
    quick.server = ServerId(1);
    let net = Net::new(quick).unwrap();
    net.set_address(ServerId(2), &served.address);
    let mut channel = net.open(two(), Service::Meta, Bytes::new()).await.unwrap();
    let idle = tokio::time::timeout(Duration::from_millis(1000), channel.recv()).await;
    assert!(idle.is_err(), "the connection was lost: {:?}", channel.failure());
}

/// Frames that still wait when the caller's time is over are withdrawn: certainly not
/// sent. What the socket took is lost.
#[tokio::test]
async fn requests_behind_a_full_socket_are_not_sent() {
    let served = serve(options(2)).await;
    let wire = Wire::to(&served.address).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &wire.address);
    ask(&net, "now").await.unwrap();
    wire.freeze();
    let stuffed = tokio::spawn({
        let net = net.clone();
        async move { ask(&net, vec![b'n'; 32 << 20]).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..20 {
        let behind = net.call(two(), Service::Rows, "now".into(), Duration::from_millis(10)).await;
        assert!(matches!(behind, Err(NetError::NotSent(_))), "{behind:?}");
    }
    let dropped = tokio::time::timeout(Duration::from_millis(10), ask(&net, "now")).await;
    assert!(dropped.is_err());
    wire.thaw();
    assert_eq!(stuffed.await.unwrap().unwrap().len(), 32 << 20);
    ask(&net, "now").await.unwrap();
    assert_eq!(served.echo.calls.load(Ordering::SeqCst), 3, "what was withdrawn was never served");
}

/// A server that stops answers what it was asked; new calls are not sent.
#[tokio::test]
async fn a_stopping_server_first_answers_its_calls() {
    let (net, served) = pair().await;
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let net = net.clone();
            tokio::spawn(async move { ask(&net, vec![b'w', 200, 0]).await })
        })
        .collect();
    until("all have come", || served.echo.calls.load(Ordering::SeqCst) == 50).await;
    let stopping = Instant::now();
    served.stop.cancel();
    served.serving.await.unwrap();
    assert!(stopping.elapsed() < Duration::from_secs(3), "it took {:?}", stopping.elapsed());
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), &[b'w', 200, 0][..]);
    }
    assert!(matches!(ask(&net, "now").await, Err(NetError::NotSent(_))));
}

/// Under constant calls, a server that stops causes no loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_loses_no_call() {
    let (net, served) = pair().await;
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let net = net.clone();
            tokio::spawn(async move {
                loop {
                    match ask(&net, "later").await {
                        Ok(_) => {}
                        Err(NetError::NotSent(_)) => return,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    until("calls go through", || served.echo.calls.load(Ordering::SeqCst) > 1000).await;
    served.stop.cancel();
    served.serving.await.unwrap();
    for caller in callers {
        caller.await.unwrap();
    }
}
