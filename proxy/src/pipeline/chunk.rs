//! The commands of one read whose replies are not written yet, in order, and the ops that
//! they wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cluster::CallError;
use commands::rounds::Rounds;
use commands::{LocalCommand, Reply, ReplyBuilder, RowPlan};
use row::AnswerSize;
use row::op::Op;
use smallvec::SmallVec;

use crate::resp::CommandSpan;
use crate::router::{Batches, Outcome};
use crate::stats::{CommandIndex, ResolvedCommand};

/// The size of a value is unknown before it is read. So of the ops of a chunk whose
/// answers may be large, a few are executed first, and twice as many each time as long as
/// the replies are small. (With writes among them, more, as each round costs a log
/// entry.)
const LARGE_OPS_FIRST: usize = 16;
const LARGE_OPS_FIRST_WITH_WRITES: usize = 64;
const DOUBLINGS_MAX: u32 = 8;
/// Replies of one round up to this size count as small.
const SMALL_BYTES: usize = 1 << 20;

/// The clock is read once per this many commands.
pub(crate) const SLICE_COMMANDS: usize = 8;

/// The commands of one chunk whose replies are not written yet.
pub(crate) struct Chunk {
    pub(crate) batches: Batches,
    pub(crate) entries: VecDeque<PendingReply>,
    /// Some of `entries` are unanswered because the client must read first.
    pub(crate) is_owed: bool,
    /// A local command to run once the replies to `entries`, which are owed, are written.
    pub(crate) stalled: Option<(NextStep, CommandSpan)>,
    /// Estimated memory of the replies in `entries` and of the ops in `batches`, bytes.
    pub(crate) reply_bytes: usize,
    pub(crate) planned_bytes: usize,
    pub(crate) started: Instant,
    /// Start of the current time slice, and commands since the clock was last read.
    pub(crate) slice: Instant,
    pub(crate) slice_commands: usize,
    pub(crate) counts: SmallVec<[(CommandIndex, u64); 8]>,
    pub(crate) last: Option<ResolvedCommand>,
    /// Ops in the batches whose answers may be large; `true` if there are writes as well.
    pub(crate) large_ops: usize,
    pub(crate) writes: bool,
    /// Number of times the limit of large ops has doubled.
    pub(crate) doublings: u32,
    /// No table of this name existed when the catalogue was asked. This holds for all
    /// commands of the chunk, which had arrived by then, until one has an effect.
    pub(crate) absent: Option<Arc<str>>,
    /// The catalogue could not be asked, or a table could not be created: the rest of the
    /// chunk is refused without waiting again.
    pub(crate) unknown: Option<CallError>,
    pub(crate) unmade: Option<CallError>,
}

impl Default for Chunk {
    fn default() -> Self {
        Chunk {
            batches: Batches::default(),
            entries: VecDeque::new(),
            is_owed: false,
            stalled: None,
            reply_bytes: 0,
            planned_bytes: 0,
            started: Instant::now(),
            slice: Instant::now(),
            slice_commands: 0,
            counts: SmallVec::new(),
            last: None,
            large_ops: 0,
            writes: false,
            doublings: 0,
            absent: None,
            unknown: None,
            unmade: None,
        }
    }
}

impl Chunk {
    /// More commands have arrived, or are continued.
    pub(crate) fn start(&mut self) {
        self.started = Instant::now();
        self.slice = self.started;
        self.doublings = 0;
        (self.absent, self.unknown, self.unmade) = (None, None, None);
    }

    /// The ops that filled the chunk were executed, and their replies take this many
    /// bytes.
    pub(crate) fn note_replies(&mut self, bytes: usize) {
        self.doublings =
            if bytes <= SMALL_BYTES { (self.doublings + 1).min(DOUBLINGS_MAX) } else { 0 };
    }

    /// Counts the ops of a command, each of which is added to the batches `copies` times.
    /// Their parts are slices of its arguments, of `args_bytes`, which count as input; what
    /// they take beyond these is counted here.
    pub(crate) fn note(&mut self, ops: &[Op], copies: usize, args_bytes: usize) {
        let mut bytes = 0;
        for op in ops {
            bytes += op.memory_bytes() + size_of::<Outcome>();
            self.large_ops += copies * usize::from(op.answer_size() == AnswerSize::Large);
            self.writes |= op.is_write();
        }
        self.planned_bytes += copies * bytes.saturating_sub(args_bytes);
    }

    /// Estimated memory of plans, answers and replies, bytes.
    pub(crate) fn made_bytes(&self) -> usize {
        self.planned_bytes + self.reply_bytes + self.batches.held_bytes()
    }

    /// `true` if so many large replies or partitions are pending that they must be
    /// executed first.
    pub(crate) fn is_full(&self) -> bool {
        if self.batches.is_full() {
            return true;
        }
        let first = if self.writes { LARGE_OPS_FIRST_WITH_WRITES } else { LARGE_OPS_FIRST };
        self.large_ops >= first << self.doublings
    }
}

/// A command of the chunk, and what its reply waits for.
pub(crate) struct PendingReply {
    pub(crate) resolved: Option<ResolvedCommand>,
    pub(crate) span: CommandSpan,
    pub(crate) silent: bool,
    pub(crate) state: ReplyState,
}

/// A reply, or what it waits for.
pub(crate) enum ReplyState {
    Ready(Reply),
    /// The outcomes of its ops are known without executing them.
    Answered(ReplyBuilder, Vec<Outcome>),
    /// It is in the output already, from this position on; it is the only entry.
    InOutput(usize),
    /// Waits for its ops, which are in the batches with these indexes; the flag is set if
    /// they count as look-ups.
    Waiting(ReplyBuilder, SmallVec<[u16; 4]>, bool),
    /// Refused because its answers are too large; the outcomes of the ops in these
    /// batches are dropped as they arrive.
    Refused(Reply, SmallVec<[u16; 4]>),
}

/// The rest of a command that could not be completed immediately.
pub(crate) enum NextStep {
    Done,
    /// CLIENT PAUSE holds the command back.
    Pause,
    /// Ops on a table that this proxy does not know.
    NoTable(RowPlan, ResolvedCommand),
    /// A command with several rounds.
    Rounds(Box<dyn Rounds>, ResolvedCommand),
    /// SELECT of a table that this proxy does not know.
    Select(Bytes, ResolvedCommand),
    /// EXEC.
    Exec(ResolvedCommand),
    /// A local command that need not wait for the commands before it.
    AtOnce(LocalCommand, ResolvedCommand),
    /// A local command.
    Local(LocalCommand, ResolvedCommand),
}

impl NextStep {
    /// True if it does more than ops on rows: monitors see it once it has run.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            NextStep::Done | NextStep::Pause | NextStep::NoTable(..) => false,
            NextStep::Rounds(..)
            | NextStep::Select(..)
            | NextStep::Exec(..)
            | NextStep::AtOnce(..)
            | NextStep::Local(..) => true,
        }
    }
}
