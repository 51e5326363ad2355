//! WAIT and WAITAOF: durability and replication of this connection's writes.
//!
//! A connection records the partitions that it writes to (`waits/written.rs`). WAITAOF
//! asks the leader of each, in whatever process, to sync its log up to the current commit
//! ([`PartitionOp::Sync`]), and, when replicas are wanted, the other replicas to sync
//! theirs up to the same entry. So the reply rests on these syncs and not on the
//! configuration of this process.
//!
//! # Invariants
//! - A disk is claimed only after the leader of every written partition has synced, or
//!   has by its durability (`waitaof_claims_only_what_is_on_disk`;
//!   `integration/tests/durability_reporting.rs`,
//!   `a_proxy_reports_durability_and_waitaof_syncs_the_storage`).

pub(crate) mod written;

use std::time::{Duration, Instant};

use cluster::{Boxed, CallError, Fault, PartitionId};
use commands::Reply;
use commands::generic::WaitCommand;
use row::PartitionOp;
use row::op::{Answer, Op, Request, Response};
use tokio_util::sync::CancellationToken;

use crate::host::Durability;
use crate::session::Session;
use crate::{Proxy, errors, router};

/// Longer than any client waits, and within the range of timers.
const WAIT_MAX: Duration = Duration::from_secs(1 << 30);
/// Partitions that are synced concurrently.
const SYNC_CONCURRENCY: usize = 16;

/// The end of a wait of this many ms; 0 = never.
fn deadline(timeout_ms: u64) -> Instant {
    Instant::now()
        + if timeout_ms == 0 { WAIT_MAX } else { Duration::from_millis(timeout_ms).min(WAIT_MAX) }
}

/// Parameters of WAITAOF.
struct WaitRequest {
    replicas: u32,
    deadline: Instant,
    /// Cancelled by CLIENT UNBLOCK.
    unblocked: CancellationToken,
}

impl WaitRequest {
    /// Completes at the deadline or when the client is unblocked.
    async fn ends(&self) {
        tokio::select! {
            () = tokio::time::sleep_until(self.deadline.into()) => {}
            () = self.unblocked.cancelled() => {}
        }
    }
}

impl Session {
    /// Runs WAIT or WAITAOF. In a transaction nothing `may_block`, as in Redis: WAITAOF
    /// reports the current state.
    pub(crate) fn run_wait(&mut self, command: WaitCommand, may_block: bool) -> Boxed<'_, Reply> {
        Box::pin(async move {
            match command {
                WaitCommand::Replicas { replicas: _, timeout_ms: _ } => self.wait_for_copies(),
                WaitCommand::Disks { local, replicas, timeout_ms } if may_block => {
                    self.wait_for_disks(local, replicas, deadline(timeout_ms)).await
                }
                WaitCommand::Disks { .. } => self.wait_for_disks(0, 0, Instant::now()).await,
            }
        })
    }

    /// The partitions of a wait: the written ones, or else those of the selected table.
    fn waited_for(&mut self) -> Vec<PartitionId> {
        if !self.written.partitions.is_empty() {
            return self.written.partitions.iter().copied().collect();
        }
        self.table().map(|table| router::partitions(table).collect()).unwrap_or_default()
    }

    /// WAIT: the number of copies besides the leader's that have every write acknowledged
    /// to this client. Replies immediately: an acknowledged write already is on all
    /// replicas that will be counted, so waiting adds no copy.
    fn wait_for_copies(&mut self) -> Reply {
        let partitions = self.waited_for();
        Reply::Int(i64::from(copies(&self.proxy, &partitions)))
    }

    /// WAITAOF: (synced by all leaders, number of other replicas that have synced). Waits
    /// until the request is met, or for the deadline, as in Redis.
    async fn wait_for_disks(&mut self, local: i64, replicas: i64, deadline: Instant) -> Reply {
        let partitions = self.waited_for();
        let proxy = self.proxy.clone();
        let always = proxy.host.durability() == Durability::Always;
        if local == 0 && replicas == 0 {
            // Nothing needs a sync, and nothing is claimed that does not hold anyway.
            return waitaof_reply(always, if always { copies(&proxy, &partitions) } else { 0 });
        }
        let client = self.client.clone();
        let waiting = client.wait();
        let replicas = u32::try_from(replicas).unwrap_or(u32::MAX);
        let wanted = WaitRequest { replicas, deadline, unblocked: waiting.unblocked.clone() };
        let synced = tokio::select! {
            synced = sync_all(&proxy, &partitions, &wanted) => synced,
            () = client.killed() => Ok((false, 0)),
            () = proxy.shutdown.cancelled() => Ok((false, 0)),
        };
        match synced {
            _ if waiting.ends_with_error() => {
                Reply::error("UNBLOCKED client unblocked via CLIENT UNBLOCK")
            }
            Ok((leaders, others)) => {
                if leaders && others >= wanted.replicas {
                    self.written.clear();
                }
                waitaof_reply(leaders, others)
            }
            Err(error) => errors::call_error(&error),
        }
    }
}

fn waitaof_reply(local: bool, others: u32) -> Reply {
    Reply::Array(vec![Reply::Int(i64::from(local)), Reply::Int(i64::from(others))])
}

/// The smallest number of copies, over all partitions, that hold every acknowledged write
/// besides the leader's.
fn copies(proxy: &Proxy, partitions: &[PartitionId]) -> u32 {
    partitions.iter().map(|partition| proxy.host.replicas(*partition)).min().unwrap_or(0)
}

/// `true` if all leaders have synced, and the smallest number of other replicas that
/// have, over all partitions.
async fn sync_all(
    proxy: &Proxy,
    partitions: &[PartitionId],
    wanted: &WaitRequest,
) -> Result<(bool, u32), CallError> {
    let (mut leaders, mut others) = (true, None::<u32>);
    for some in partitions.chunks(SYNC_CONCURRENCY) {
        let mut asked: Vec<Boxed<'_, Result<Option<(bool, u32)>, CallError>>> =
            Vec::with_capacity(some.len());
        for &partition in some {
            asked.push(Box::pin(sync_one(proxy, partition, wanted)));
        }
        for one in futures::future::join_all(asked).await {
            if let Some((leader, copies)) = one? {
                leaders &= leader;
                others = Some(others.map_or(copies, |others| others.min(copies)));
            }
        }
    }
    let others = others.unwrap_or(0);
    if !leaders || others < wanted.replicas {
        // More were asked for than there are; as in Redis, that waits.
        wanted.ends().await;
    }
    Ok((leaders, others))
}

/// As [`sync_all`], of one partition; `None`: its table was dropped.
async fn sync_one(
    proxy: &Proxy,
    partition: PartitionId,
    wanted: &WaitRequest,
) -> Result<Option<(bool, u32)>, CallError> {
    let request = Request {
        ops: vec![Op::Partition(PartitionOp::Sync)],
        joined: Vec::new(),
        watched: Vec::new(),
    };
    let asked = router::respond(proxy, partition, &request, wanted.deadline);
    let answer = tokio::select! {
        answer = asked => answer,
        () = wanted.ends() => return Ok(Some((false, 0))),
    };
    let index = match answer {
        Err(CallError::NoLeader(_)) => return Ok(Some((false, 0))),
        Err(CallError::NoTable) => return Ok(None),
        Err(error) => return Err(error),
        Ok(Response::Done(outcomes)) => match outcomes[..] {
            [Ok(Answer::Int(index))] => u64::try_from(index).unwrap_or(0),
            _ => {
                return Err(CallError::Fault(Fault::internal(
                    "a node answered something else than it was asked",
                )));
            }
        },
        Ok(Response::Touched) => {
            return Err(CallError::Fault(Fault::internal(
                "a node says that a row was touched which nobody watched",
            )));
        }
    };
    let others = match wanted.replicas {
        // Their durability suffices without a sync.
        0 if proxy.host.durability() == Durability::Always => proxy.host.replicas(partition),
        0 => 0,
        replicas => {
            proxy.host.synced_copies(partition, index, replicas, Box::pin(wanted.ends())).await
        }
    };
    Ok(Some((true, others)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fakes::{self, FakeBackend};

    fn session(backend: FakeBackend) -> (Session, Arc<FakeBackend>) {
        let backend = Arc::new(backend);
        let proxy = fakes::proxy(&backend);
        (Session::new(proxy, fakes::client(1)), backend)
    }

    async fn disks(backend: FakeBackend, local: i64, replicas: i64, timeout_ms: u64) -> Reply {
        session(backend).0.wait_for_disks(local, replicas, deadline(timeout_ms)).await
    }

    #[tokio::test]
    async fn waits_tell_the_least_of_all_partitions() {
        let (mut session, backend) = session(FakeBackend::default());
        assert_eq!(session.wait_for_copies(), Reply::Int(1));
        let table = cluster::Catalogue::tables(&*backend)[0].id;
        session.written.note(PartitionId { table, index: 0 });
        assert_eq!(session.wait_for_copies(), Reply::Int(2), "it has written to this one only");
    }

    #[tokio::test]
    async fn waitaof_claims_only_what_is_on_disk() {
        let lazy = || FakeBackend { lazy: true, ..FakeBackend::default() };
        assert_eq!(disks(FakeBackend::default(), 0, 0, 0).await, waitaof_reply(true, 1));
        assert_eq!(disks(lazy(), 0, 0, 0).await, waitaof_reply(false, 0));
        assert_eq!(disks(lazy(), 1, 0, 0).await, waitaof_reply(true, 0));
        assert_eq!(disks(lazy(), 1, 1, 0).await, waitaof_reply(true, 1));
        assert!(matches!(
            disks(FakeBackend { disk_fails: true, ..lazy() }, 1, 0, 0).await,
            Reply::Error(_)
        ));
        // A leader that does not answer is not claimed, and a request for more replicas
        // than exist waits.
        let before = Instant::now();
        assert_eq!(
            disks(FakeBackend { leaderless: true, ..lazy() }, 1, 0, 50).await,
            waitaof_reply(false, 0)
        );
        assert_eq!(disks(lazy(), 1, 7, 50).await, waitaof_reply(true, 1));
        assert!(before.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn client_unblock_wakes_waitaof_with_what_there_is_or_an_error() {
        let (mut session, _) = session(FakeBackend { lazy: true, ..FakeBackend::default() });
        let client = session.client.clone();
        assert!(!client.unblock(false), "it does not wait");
        let error = Reply::error("UNBLOCKED client unblocked via CLIENT UNBLOCK");
        for (with_error, reply) in
            [(false, waitaof_reply(true, 1)), (true, error), (false, waitaof_reply(true, 1))]
        {
            let unblock = async {
                while !client.is_blocked() {
                    tokio::task::yield_now().await;
                }
                // It has the current state, and waits for more.
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(client.line().contains(" flags=b "), "{}", client.line());
                assert!(client.unblock(with_error));
                assert!(!client.unblock(with_error), "once");
            };
            let (answer, ()) = tokio::join!(session.wait_for_disks(1, 7, deadline(0)), unblock);
            assert_eq!(answer, reply);
            assert!(!client.is_blocked());
        }
        // A leader that has not answered by then is not claimed.
        let (mut session, _) =
            self::session(FakeBackend { leaderless: true, lazy: true, ..FakeBackend::default() });
        let client = session.client.clone();
        let unblock = async {
            while !client.unblock(false) {
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(
            tokio::join!(session.wait_for_disks(1, 0, deadline(0)), unblock).0,
            waitaof_reply(false, 0)
        );
    }

    #[tokio::test]
    async fn every_partition_that_was_written_to_is_asked_once() {
        let (mut session, backend) = session(FakeBackend { lazy: true, ..FakeBackend::default() });
        let table = cluster::Catalogue::tables(&*backend)[1].id;
        for index in [0, 3, 0, 3, 3] {
            session.written.note(PartitionId { table, index });
        }
        assert_eq!(session.wait_for_disks(1, 0, deadline(0)).await, waitaof_reply(true, 0));
        assert_eq!(*backend.synced.lock(), [0, 3].map(|index| PartitionId { table, index }));
        // A successful wait is not repeated.
        backend.synced.lock().clear();
        session.written.note(PartitionId { table, index: 2 });
        session.wait_for_disks(1, 0, deadline(0)).await;
        assert_eq!(*backend.synced.lock(), [PartitionId { table, index: 2 }]);
    }
}
