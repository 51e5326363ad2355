//! Plans: how a command is executed, and how its answers become a reply.

use bytes::Bytes;
use row::op::{Answer, Op, Refusal, RowContent};
use smallvec::{SmallVec, smallvec};

use crate::client::ClientCommand;
use crate::config::ConfigCommand;
use crate::connection::ConnectionCommand;
use crate::generic::WaitCommand;
use crate::latency::{LatencyCommand, SlowlogCommand};
use crate::rounds::Rounds;
use crate::server::{DebugCommand, MemoryCommand, ServerCommand};
use crate::transactions::TransactionCommand;
use crate::{Reply, ReplyWriter, errors};

/// A plan, or the error reply that the client gets immediately (no network call, and the
/// connection stays open).
pub type PlanResult = Result<Plan, Reply>;

/// Ways to execute a command.
#[derive(Debug)]
pub enum Plan {
    /// By ops on rows.
    Rows(RowPlan),
    /// By several rounds of ops, each of which depends on the answers before it.
    Rounds(Box<dyn Rounds>),
    /// By the session and the proxy.
    Local(LocalCommand),
    /// SELECT: the argument names the table of the commands after it. `3` is table `db3`;
    /// an argument that is no number is a table's name.
    Select(Bytes),
    /// EXEC: the plans of the commands that MULTI has queued.
    Exec,
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
    /// Counts as a hit or a miss of the key space
    /// ([`flags::LOOKUP`](crate::table::flags::LOOKUP)).
    pub is_lookup: bool,
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
            is_lookup: false,
            builder: ReplyBuilder::All(builder),
        }))
    }

    /// Several rounds.
    pub fn rounds(machine: impl Rounds + 'static) -> PlanResult {
        Ok(Plan::Rounds(Box::new(machine)))
    }

    /// A command that the session executes itself.
    pub fn local(command: impl Into<LocalCommand>) -> PlanResult {
        Ok(Plan::Local(command.into()))
    }

    /// Ops that need not be in one partition.
    pub fn rows(ops: SmallVec<[Op; 1]>, builder: ReplyBuilder) -> Plan {
        Plan::Rows(RowPlan {
            ops,
            same_partition: false,
            all_partitions: false,
            is_lookup: false,
            builder,
        })
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
pub(crate) fn work_ns(answer: &Answer) -> u64 {
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

macro_rules! families {
    ($($(#[$doc:meta])* $family:ident($command:ty),)*) => {
        /// Commands that the session executes itself, by family: parsed here, executed in
        /// `proxy`, where each family has one file, with one function for all of it.
        #[derive(Debug, Clone, PartialEq)]
        pub enum LocalCommand {
            $($(#[$doc])* $family($command),)*
        }

        $(impl From<$command> for LocalCommand {
            fn from(command: $command) -> LocalCommand {
                LocalCommand::$family(command)
            }
        })*
    };
}

families! {
    /// Authentication, protocol version, the end.
    Connection(ConnectionCommand),
    /// CLIENT.
    Client(ClientCommand),
    /// MULTI, DISCARD, WATCH, UNWATCH.
    Transaction(TransactionCommand),
    /// INFO, TIME, SHUTDOWN and others about the server.
    Server(ServerCommand),
    /// CONFIG.
    Config(ConfigCommand),
    /// MEMORY, but for the size of a row.
    Memory(MemoryCommand),
    /// DEBUG, but for rows.
    Debug(DebugCommand),
    /// SLOWLOG.
    Slowlog(SlowlogCommand),
    /// LATENCY.
    Latency(LatencyCommand),
    /// WAIT and WAITAOF.
    Wait(WaitCommand),
}
