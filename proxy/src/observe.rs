//! Tells what the commands of a chunk did: statistics, slow log, latency, monitors. Fed
//! once a chunk, after the replies are there.

use std::time::Duration;

use bytes::Bytes;
use commands::Command;
use commands::table::flags;
use smallvec::SmallVec;

use crate::redact::redacted;
use crate::resp::{self, ChunkBytes, CommandSpan};
use crate::session::Session;
use crate::settings::Settings;
use crate::stats::{CommandIndex, ResolvedCommand};

/// At most this many commands of one slow chunk go to the slow log.
const SLOW_ENTRIES_MAX: usize = 16;

impl Session {
    /// Shows an executed command to the monitors.
    pub(crate) fn show(&self, command: &Command, argv: &[Bytes]) {
        let bytes_max = self.proxy.settings.load().output_max().bytes;
        let table = self.client.database();
        self.proxy.monitors.feed(&self.client, table, command, argv, bytes_max);
    }

    /// Adds the slow ones of these commands, which took `took` together, to the slow log, and
    /// their latency to the events.
    pub(crate) fn note_slow(
        &self,
        entries: &[(Option<ResolvedCommand>, CommandSpan)],
        took: Duration,
        bytes: ChunkBytes<'_>,
        settings: &Settings,
    ) {
        // Commands of one chunk share the time, which is attributed to the slow commands
        // if there are any.
        let is_fast = |entry: &(Option<ResolvedCommand>, CommandSpan)| {
            entry.0.is_none_or(|resolved| resolved.command.is(flags::FAST))
        };
        if crate::slowlog::is_slow(took, settings.slowlog_slower_than_us) {
            let name = self.client.name();
            let all_fast = entries.iter().all(is_fast);
            let noted = entries.iter().filter(|entry| all_fast || !is_fast(entry));
            let noted = noted.filter_map(|(resolved, span)| Some(((*resolved)?.command, span)));
            let noted = noted.filter(|(command, _)| !command.is(flags::SKIP_SLOWLOG));
            for (command, span) in noted.take(SLOW_ENTRIES_MAX) {
                let argv = resp::argv(bytes, *span);
                self.proxy.slowlog.add(
                    redacted(command, &argv),
                    took,
                    &self.client.endpoint.address,
                    &name,
                    settings.slowlog_len_max,
                );
            }
        }
        if settings.latency_threshold_ms > 0 {
            let event = if entries.iter().all(is_fast) { "fast-command" } else { "command" };
            self.proxy.latency.add(event, took, settings.latency_threshold_ms);
        }
    }

    /// The last executed command, for CLIENT LIST.
    pub(crate) fn last_command(&self) -> Option<&'static str> {
        self.chunk.last.map(|resolved| resolved.command.name)
    }
}

/// Counts a call of a command.
pub(crate) fn count(counts: &mut SmallVec<[(CommandIndex, u64); 8]>, index: CommandIndex) {
    match counts.iter_mut().find(|(other, _)| *other == index) {
        Some((_, calls)) => *calls += 1,
        None => counts.push((index, 1)),
    }
}
