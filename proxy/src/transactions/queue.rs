//! The transaction of a connection until EXEC: queued commands and watched rows.

use std::sync::Arc;

use bytes::Bytes;
use cluster::PartitionId;
use commands::Reply;
use commands::args::Argv;
use commands::table::flags;
use row::op::WatchToken;
use smallvec::SmallVec;

use crate::resp;
use crate::settings::ByteLimit;
use crate::stats::ResolvedCommand;

/// The transaction of a connection: queued commands and watched rows.
#[derive(Default)]
pub(crate) struct Transaction {
    pub(super) queue: Option<Vec<QueuedCommand>>,
    /// Memory of the queue.
    pub(super) queued_bytes: usize,
    /// Memory of the queue when EXEC plans it: arguments count for more than their bytes,
    /// as those of any command.
    pub(super) planned_bytes: usize,
    /// An error occurred while queueing, so EXEC will refuse (Redis: `DIRTY_EXEC`).
    pub(super) is_dirty: bool,
    pub(super) watched: Vec<Watch>,
    pub(super) watched_bytes: usize,
}

/// A queued command. Its arguments are copied: slices would keep the whole read buffer
/// alive, and a plan may be much larger than its arguments.
pub(super) struct QueuedCommand {
    pub(super) resolved: ResolvedCommand,
    /// All arguments, concatenated, and the end of each.
    pub(super) text: Bytes,
    pub(super) ends: SmallVec<[usize; 3]>,
}

impl QueuedCommand {
    fn new(resolved: ResolvedCommand, argv: &Argv) -> QueuedCommand {
        let mut text = Vec::with_capacity(argv.iter().map(Bytes::len).sum());
        let end = |arg: &Bytes| {
            text.extend_from_slice(arg);
            text.len()
        };
        let ends = argv.iter().map(end).collect();
        QueuedCommand { resolved, text: text.into(), ends }
    }

    /// Memory of the queued command.
    fn bytes(&self) -> usize {
        let spilled =
            if self.ends.spilled() { self.ends.capacity() * size_of::<usize>() } else { 0 };
        size_of::<QueuedCommand>() + self.text.len() + spilled
    }

    pub(super) fn argv(&self) -> Argv {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| self.text.slice(start..*end)).collect()
    }
}

/// A watched row.
pub(super) enum Watch {
    Row(PartitionId, WatchToken),
    /// In a table that did not exist at WATCH.
    NoTable(Arc<str>, Bytes),
}

impl Transaction {
    pub(crate) fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// `true` if a queued command may write.
    pub(crate) fn writes(&self) -> bool {
        self.queue.iter().flatten().any(|queued| queued.resolved.command.is(flags::WRITE))
    }

    /// MULTI.
    pub(crate) fn open(&mut self) -> Reply {
        if self.is_open() {
            return Reply::error("ERR MULTI calls can not be nested");
        }
        self.queue = Some(Vec::new());
        Reply::OK
    }

    /// DISCARD.
    pub(crate) fn discard(&mut self) -> Reply {
        if !self.is_open() {
            return Reply::error("ERR DISCARD without MULTI");
        }
        *self = Transaction::default();
        Reply::OK
    }

    /// UNWATCH.
    pub(crate) fn unwatch(&mut self) {
        (self.watched, self.watched_bytes) = (Vec::new(), 0);
    }

    /// A command was refused while queueing: nothing in the queue will be executed.
    pub(crate) fn mark_dirty(&mut self) {
        if let Some(queue) = &mut self.queue {
            (self.is_dirty, *queue) = (true, Vec::new());
            (self.queued_bytes, self.planned_bytes) = (0, 0);
        }
    }

    /// Queues a command, if the plans of the whole queue stay below `bytes_max`.
    pub(crate) fn queue(
        &mut self,
        resolved: ResolvedCommand,
        argv: &Argv,
        bytes_max: ByteLimit,
    ) -> Reply {
        let Some(queue) = &mut self.queue else { return commands::errors::no_answer() };
        if resolved.command.is_refused_by_multi(argv) {
            self.mark_dirty();
            return not_in_transactions();
        }
        if self.is_dirty {
            return Reply::Status("QUEUED".into());
        }
        let planned_bytes = self.planned_bytes
            + argv.iter().map(|arg| arg.len() + resp::ARG_OVERHEAD_BYTES).sum::<usize>();
        if planned_bytes > bytes_max.bytes {
            self.mark_dirty();
            return Reply::error(format!("ERR transaction is larger than {bytes_max}"));
        }
        let queued = QueuedCommand::new(resolved, argv);
        self.planned_bytes = planned_bytes;
        self.queued_bytes += queued.bytes();
        queue.push(queued);
        Reply::Status("QUEUED".into())
    }

    /// Memory of queued commands and watched rows.
    pub(crate) fn bytes(&self) -> usize {
        let room = self
            .queue
            .as_ref()
            .map_or(0, |queue| (queue.capacity() - queue.len()) * size_of::<QueuedCommand>());
        self.queued_bytes + room + self.watched_bytes
    }

    /// For CLIENT LIST: commands queued, their bytes, rows watched.
    pub(crate) fn figures(&self) -> (Option<usize>, usize, usize) {
        (self.queue.as_ref().map(Vec::len), self.queued_bytes, self.watched.len())
    }
}

/// The reply to a command that transactions cannot have.
pub(super) fn not_in_transactions() -> Reply {
    Reply::error("ERR Command not allowed inside a transaction")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::CommandIndex;

    #[test]
    fn queued_commands_do_not_keep_the_read_buffer() {
        let chunk = Bytes::from(b"set k a value of some length".to_vec());
        let argv = Argv::from_vec(vec![chunk.slice(0..3), chunk.slice(4..5), chunk.slice(6..)]);
        let command = commands::find(b"set", None).expect("SET is in the table");
        let mut transaction = Transaction::default();
        transaction.open();
        let bytes_max = ByteLimit { bytes: 10_000, name: "limit", is_live: true };
        transaction.queue(
            ResolvedCommand { command, index: CommandIndex::of(command) },
            &argv,
            bytes_max,
        );
        drop(argv);
        assert!(chunk.try_into_mut().is_ok(), "nobody else has a part of it");
        let queued = &transaction.queue.as_ref().expect("open")[0];
        assert_eq!(queued.argv().into_vec(), ["set", "k", "a value of some length"]);
    }

    #[test]
    fn queued_command_takes_little_more_than_its_arguments() {
        let argv =
            Argv::from_vec(vec![Bytes::from_static(b"COMMAND"), Bytes::from_static(b"DOCS")]);
        let command =
            commands::find(b"command", Some(b"docs")).expect("COMMAND DOCS is in the table");
        assert!(QueuedCommand::new(ResolvedCommand { command, index: None }, &argv).bytes() < 200);
    }
}
