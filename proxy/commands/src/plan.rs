//! Plans: how a command is executed, and how its answers become a reply.

use bytes::Bytes;
use row::op::{Answer, Op, Refusal, RowContent, RowKind};
use smallvec::{SmallVec, smallvec};

use crate::{Reply, ReplyWriter, errors};

/// A plan, or the error reply that the client gets immediately (no network call, and the
/// connection stays open).
pub type PlanResult = Result<Plan, Reply>;

/// Ways to execute a command.
#[derive(Debug)]
pub enum Plan {
    /// By ops on rows.
    Rows(RowPlan),
    /// By the session and the proxy, with no call to storage or with several.
    Local(LocalCommand),
    /// Immediate reply: documentation from the table (COMMAND, HELP), and everything that
    /// needs neither rows nor a session.
    Reply(Reply),
}

/// A command that is ops on rows, and its reply builder.
#[derive(Debug)]
pub struct RowPlan {
    /// The ops; each goes to the partition of its key.
    pub ops: SmallVec<[Op; 1]>,
    /// All ops must be in one partition (else `-CROSSSLOT`); otherwise the command fans
    /// out and is atomic per partition only.
    pub same_partition: bool,
    /// The ops, which name no key, go to every partition of the table; the answers come
    /// in slot order.
    pub all_partitions: bool,
    /// Writes the outcomes of the ops (one per op; one per partition when
    /// `all_partitions`) as the reply: [`ReplyBuilder::write`].
    pub builder: ReplyBuilder,
}

/// The outcome of an op.
type Outcome = Result<Answer, Refusal>;

/// Writes answers as a reply: one value, whatever the answers are.
pub enum ReplyBuilder {
    /// The answer of the only op.
    One(fn(Answer, &mut dyn ReplyWriter)),
    /// All answers.
    All(fn(Vec<Answer>, &mut dyn ReplyWriter)),
    /// All answers, and data kept from the arguments.
    With(Box<dyn FnOnce(Vec<Answer>, &mut dyn ReplyWriter) + Send>),
    /// All outcomes, refusals included, for commands that do not simply return the first
    /// refusal (MGET, LCS).
    Outcomes(Box<dyn FnOnce(Vec<Outcome>, &mut dyn ReplyWriter) + Send>),
    /// As `Outcomes`, but compares every byte of the first answer with every byte of the
    /// second (LCS).
    Pairwise(Box<dyn FnOnce(Vec<Outcome>, &mut dyn ReplyWriter) + Send>),
}

impl Plan {
    /// One op, and its reply builder.
    pub fn one(op: impl Into<Op>, builder: fn(Answer, &mut dyn ReplyWriter)) -> PlanResult {
        Ok(Plan::rows(smallvec![op.into()], ReplyBuilder::One(builder)))
    }

    /// One op, and a reply builder that keeps data from the arguments.
    pub fn with(
        op: impl Into<Op>,
        builder: impl FnOnce(Answer, &mut dyn ReplyWriter) + Send + 'static,
    ) -> PlanResult {
        let first =
            |answers: Vec<Answer>, reply: &mut dyn ReplyWriter| match answers.into_iter().next() {
                Some(answer) => builder(answer, reply),
                None => errors::no_answer().write(reply),
            };
        Ok(Plan::rows(smallvec![op.into()], ReplyBuilder::With(Box::new(first))))
    }

    /// Several ops on rows that may be in different partitions.
    pub fn each(
        ops: impl IntoIterator<Item = impl Into<Op>>,
        builder: fn(Vec<Answer>, &mut dyn ReplyWriter),
    ) -> PlanResult {
        Ok(Plan::rows(ops.into_iter().map(Into::into).collect(), ReplyBuilder::All(builder)))
    }

    /// One op on every partition of the table.
    pub fn all_partitions(
        op: impl Into<Op>,
        builder: fn(Vec<Answer>, &mut dyn ReplyWriter),
    ) -> PlanResult {
        Ok(Plan::Rows(RowPlan {
            ops: smallvec![op.into()],
            same_partition: false,
            all_partitions: true,
            builder: ReplyBuilder::All(builder),
        }))
    }

    /// Ops that need not be in one partition.
    pub fn rows(ops: SmallVec<[Op; 1]>, builder: ReplyBuilder) -> Plan {
        Plan::Rows(RowPlan { ops, same_partition: false, all_partitions: false, builder })
    }
}

impl ReplyBuilder {
    /// Writes the outcomes of the ops as the reply. The first refusal is the reply,
    /// unless the builder handles refusals itself.
    pub fn write(self, outcomes: impl IntoIterator<Item = Outcome>, reply: &mut dyn ReplyWriter) {
        let mut outcomes = outcomes.into_iter();
        match self {
            ReplyBuilder::One(write) => match outcomes.next() {
                Some(Ok(answer)) => write(answer, reply),
                Some(Err(refusal)) => errors::refusal(refusal).write(reply),
                None => errors::no_answer().write(reply),
            },
            ReplyBuilder::All(write) => match outcomes.collect::<Result<Vec<_>, _>>() {
                Ok(answers) => write(answers, reply),
                Err(refusal) => errors::refusal(refusal).write(reply),
            },
            ReplyBuilder::With(write) => match outcomes.collect::<Result<Vec<_>, _>>() {
                Ok(answers) => write(answers, reply),
                Err(refusal) => errors::refusal(refusal).write(reply),
            },
            ReplyBuilder::Outcomes(write) | ReplyBuilder::Pairwise(write) => {
                write(outcomes.collect(), reply)
            }
        }
    }

    /// Estimated time to write the reply, ns.
    pub fn work_ns(&self, outcomes: &[Outcome]) -> u64 {
        let lens = outcomes.iter().map(|outcome| {
            if let Ok(Answer::Bytes(bytes)) = outcome { bytes.len() as u64 } else { 1 }
        });
        match self {
            ReplyBuilder::Pairwise(_) => lens.fold(1, u64::saturating_mul),
            ReplyBuilder::One(_)
            | ReplyBuilder::All(_)
            | ReplyBuilder::With(_)
            | ReplyBuilder::Outcomes(_) => {
                outcomes.iter().map(|outcome| outcome.as_ref().map_or(VALUE_NS, work_ns)).sum()
            }
        }
    }
}

/// Estimated time to write one value of a reply, ns, and 1024 bytes of it: copied into
/// memory that the system has to clear first. A checksum over them takes more.
const VALUE_NS: u64 = 40;
const KIB_NS: u64 = 512;
const KIB_DUMPED_NS: u64 = 2048 + KIB_NS;
/// The lengths of values beyond these are not added up: writing as many takes long
/// whatever their lengths.
const VALUES_MEASURED: usize = 64 * 1024;

/// Estimated time to write an answer as a reply, ns. Whole rows become a payload with a
/// checksum.
fn work_ns(answer: &Answer) -> u64 {
    let cells_len = |cells: &[(Bytes, Bytes)]| {
        let cells = cells.iter().take(VALUES_MEASURED);
        cells.map(|(sortkey, value)| sortkey.len() + value.len()).sum::<usize>()
    };
    let (values, bytes) = match answer {
        Answer::Ints(numbers) => (numbers.len(), 0),
        Answer::Bytes(bytes) => (1, bytes.len()),
        Answer::Values(values) => {
            (values.len(), values.iter().take(VALUES_MEASURED).flatten().map(Bytes::len).sum())
        }
        Answer::Written { old, .. } => (1, old.as_ref().map_or(0, Bytes::len)),
        Answer::Page { keys, .. } => {
            (keys.len(), keys.iter().take(VALUES_MEASURED).map(Bytes::len).sum())
        }
        Answer::Cells { cells, .. } | Answer::CellsPage { cells, .. } => {
            (2 * cells.len(), cells_len(cells))
        }
        Answer::RowContent { content, .. } => {
            let len = match content {
                RowContent::String(value) => value.len(),
                RowContent::Hash(fields) => {
                    fields.iter().map(|(name, value, _)| name.len() + value.len()).sum()
                }
            };
            return VALUE_NS + len as u64 * KIB_DUMPED_NS / 1024;
        }
        Answer::Checked { value, .. } => (2, value.iter().flatten().map(Bytes::len).sum()),
        Answer::Nil
        | Answer::Ok
        | Answer::Int(_)
        | Answer::Row(_)
        | Answer::Deleted { .. }
        | Answer::Expired { .. }
        | Answer::WatchToken(_) => (1, 0),
    };
    values as u64 * VALUE_NS + bytes as u64 * KIB_NS / 1024
}

impl std::fmt::Debug for ReplyBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReplyBuilder")
    }
}

/// Commands that the session executes itself: parsed here, executed in `proxy`, where the
/// families' files have the same names.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum LocalCommand {
    // ---- connection ----
    Ping(Option<Bytes>),
    Echo(Bytes),
    Quit,
    Reset,
    Hello(Hello),
    Auth {
        user: Option<Bytes>,
        password: Bytes,
    },
    /// `SELECT 3` is table `db3`; any other argument is a table's name.
    Select(Bytes),
    Client(ClientCommand),
    // ---- transactions ----
    Multi,
    Exec,
    Discard,
    Watch(Vec<Bytes>),
    Unwatch,
    // ---- server ----
    Info(Vec<Bytes>),
    ConfigGet(Vec<Bytes>),
    ConfigSet(Vec<(Bytes, Bytes)>),
    ConfigResetStat,
    ConfigRewrite,
    FlushAll,
    Time,
    Shutdown {
        save: Option<bool>,
        now: bool,
        force: bool,
        abort: bool,
    },
    SlowlogGet(i64),
    SlowlogLen,
    SlowlogReset,
    LatencyLatest,
    LatencyHistory(Bytes),
    LatencyReset(Vec<Bytes>),
    LatencyDoctor,
    LatencyHistogram(Vec<Bytes>),
    MemoryDoctor,
    MemoryStats,
    Monitor,
    Lolwut(Option<i64>),
    DebugSleep {
        seconds: f64,
    },
    /// DEBUG SET-ACTIVE-EXPIRE
    DebugActiveExpire(bool),
    /// WAIT: replicas, timeout ms.
    Wait {
        replicas: i64,
        timeout_ms: u64,
    },
    /// WAITAOF: local, replicas, timeout ms.
    WaitAof {
        local: i64,
        replicas: i64,
        timeout_ms: u64,
    },
    // ---- keys, with several calls ----
    Keys {
        glob: Bytes,
    },
    Scan {
        cursor: u64,
        count: u64,
        glob: Option<Bytes>,
        kind: Option<RowKind>,
        /// TYPE names a kind that no row can have.
        none: bool,
    },
    RandomKey,
    /// MOVE key db
    Move {
        key: Bytes,
        table: Bytes,
    },
    /// COPY source destination DB n
    CopyTo {
        from: Bytes,
        to: Bytes,
        table: Bytes,
        replace: bool,
    },
}

/// HELLO's arguments.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hello {
    /// 2, 3 or unchanged.
    pub protocol: Option<u8>,
    /// AUTH user password.
    pub auth: Option<(Bytes, Bytes)>,
    /// SETNAME, already checked.
    pub name: Option<Bytes>,
}

/// CLIENT's subcommands.
#[allow(missing_docs, reason = "variants are the subcommands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum ClientCommand {
    Id,
    GetName,
    SetName(Bytes),
    SetInfo { library_name: Option<Bytes>, library_version: Option<Bytes> },
    Info,
    List { kind: Option<Bytes>, ids: Vec<u64> },
    Kill(KillFilter),
    NoEvict(bool),
    NoTouch(bool),
    Reply(ReplyMode),
    Pause { ms: u64, writes_only: bool },
    Unpause,
    Unblock { id: u64, with_error: bool },
}

/// Filter of CLIENT KILL; all conditions that are set must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KillFilter {
    /// `CLIENT KILL addr`: replies OK or an error instead of a count.
    pub old_form: bool,
    /// The client with this id.
    pub id: Option<u64>,
    /// Clients with this address.
    pub address: Option<Bytes>,
    /// Clients connected to this address of the server.
    pub local_address: Option<Bytes>,
    /// `normal`, `master`, `replica` (or `slave`) or `pubsub`, in any case.
    pub kind: Option<Bytes>,
    /// Clients authenticated as this user.
    pub user: Option<Bytes>,
    /// Not the calling connection.
    pub skip_me: bool,
    /// Clients connected for at least this many seconds.
    pub max_age_seconds: Option<u64>,
}

/// CLIENT REPLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReplyMode {
    On,
    Off,
    Skip,
}
