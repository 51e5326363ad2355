//! One client as a line of CLIENT LIST, in Redis's order of fields.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use super::Client;

impl Client {
    /// The line, without a line end.
    pub(crate) fn line(&self) -> String {
        let shown = self.info.lock().clone();
        let pushed = self.pushed.lock().len();
        let mut flags = String::new();
        let set = [
            (shown.monitors, 'O'),
            (shown.queued.is_some(), 'x'),
            (self.is_blocked(), 'b'),
            (self.endpoint.is_unix, 'U'),
            (self.no_evict.load(Relaxed), 'e'),
            (shown.no_touch, 'T'),
        ];
        flags.extend(set.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag));
        if flags.is_empty() {
            flags.push('N');
        }
        let output = shown.output_bytes + pushed;
        let mut line = String::with_capacity(384);
        let _ = write!(
            line,
            "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={flags} db={} sub=0 psub=0 \
             ssub=0 multi={} watch={} qbuf={} qbuf-free={} argv-mem=0 multi-mem={} rbs=0 rbp=0 \
             obl={output} oll=0 omem={output} tot-mem={} events={} cmd={} user=default redir=-1 \
             resp={} lib-name={} lib-ver={}",
            self.id,
            self.endpoint.address,
            self.endpoint.local_address,
            self.endpoint.fd,
            text(&shown.name),
            self.connected.elapsed().as_secs(),
            self.idle_ms() / 1000,
            shown.database,
            shown.queued.map_or(-1, |queued| queued as i64),
            shown.watched,
            shown.query_bytes,
            shown.query_room,
            shown.queued_bytes,
            self.usage.bytes(),
            if output > 0 { "rw" } else { "r" },
            shown.last_command.unwrap_or("NULL"),
            shown.protocol,
            text(&shown.library_name),
            text(&shown.library_version),
        );
        line
    }
}

/// Names are checked to be printable when they are set.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
