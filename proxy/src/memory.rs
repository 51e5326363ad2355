//! MEMORY STATS and MEMORY DOCTOR, and the memory fields of INFO.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use commands::Reply;
use commands::server::MemoryCommand;

use crate::Proxy;
use crate::host::ProcessMemory;
use crate::info::human;

/// A snapshot of the process's memory, bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryStats {
    pub(crate) process: ProcessMemory,
    /// `used_memory`: the allocator's number, or the resident set if there is none.
    pub(crate) used: u64,
    /// Maximum of `used`, updated at every snapshot and periodically.
    pub(crate) peak: u64,
    /// Resident set, as the operating system reports it.
    pub(crate) resident: u64,
    /// Memory kept for clients, as limited by `maxmemory-clients`.
    pub(crate) clients: u64,
    /// Memory of the machine.
    pub(crate) system: u64,
}

/// Peak of memory use.
#[derive(Debug, Default)]
pub struct MemoryPeak(AtomicU64);

impl MemoryPeak {
    fn reach(&self, used: u64) -> u64 {
        self.0.fetch_max(used, Relaxed).max(used)
    }
}

impl MemoryStats {
    pub(crate) fn of(proxy: &Proxy) -> MemoryStats {
        let process = proxy.host.memory();
        let resident = crate::info::process_status().map_or(0, |status| status.resident);
        let used = if process.allocated > 0 { process.allocated } else { resident };
        MemoryStats {
            used,
            peak: proxy.memory_peak.reach(used),
            resident,
            clients: proxy.clients.used_bytes() as u64,
            system: crate::info::system_memory(),
            process,
        }
    }

    /// Updates the peak; called periodically.
    pub(crate) fn note_peak(proxy: &Proxy) {
        let used = proxy.host.memory().allocated;
        proxy.memory_peak.reach(used);
    }

    /// Memory for rows: caches, memtables, log tail.
    pub(crate) fn dataset(&self) -> u64 {
        self.process.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// `part` in percent of `whole`.
pub(crate) fn percent(part: u64, whole: u64) -> f64 {
    ratio(part, whole) * 100.0
}

pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Runs a MEMORY command about the process.
pub(crate) fn run(proxy: &Proxy, command: MemoryCommand) -> Reply {
    match command {
        MemoryCommand::Doctor => doctor(proxy),
        MemoryCommand::Stats => stats(proxy),
    }
}

/// MEMORY STATS: Redis's names where Bridle has a counterpart, followed by Bridle's own
/// parts.
fn stats(proxy: &Proxy) -> Reply {
    let memory = MemoryStats::of(proxy);
    let rows: u64 = proxy.host.tables().iter().map(|table| table.rows).sum();
    let dataset = memory.dataset();
    let int = |name: &'static str, number: u64| {
        (bulk(name), Reply::Int(i64::try_from(number).unwrap_or(i64::MAX)))
    };
    let double = |name: &'static str, number: f64| (bulk(name), Reply::Double(number));
    let mut figures = vec![
        int("peak.allocated", memory.peak),
        int("total.allocated", memory.used),
        int("replication.backlog", 0),
        int("clients.slaves", 0),
        int("clients.normal", memory.clients),
        int("cluster.links", 0),
        int("lua.caches", 0),
        int("functions.caches", 0),
        int("overhead.total", memory.used.saturating_sub(dataset)),
        int("keys.count", rows),
        int("keys.bytes-per-key", dataset.checked_div(rows).unwrap_or(0)),
        int("dataset.bytes", dataset),
        double("dataset.percentage", percent(dataset, memory.used)),
        double("peak.percentage", percent(memory.used, memory.peak)),
        int("allocator.allocated", memory.process.allocated),
        int("allocator.active", memory.process.active),
        int("allocator.resident", memory.process.resident),
        double(
            "allocator-fragmentation.ratio",
            ratio(memory.process.active, memory.process.allocated),
        ),
        int(
            "allocator-fragmentation.bytes",
            memory.process.active.saturating_sub(memory.process.allocated),
        ),
        double("allocator-rss.ratio", ratio(memory.process.resident, memory.process.active)),
        int("allocator-rss.bytes", memory.process.resident.saturating_sub(memory.process.active)),
        double("rss-overhead.ratio", ratio(memory.resident, memory.process.resident)),
        int("rss-overhead.bytes", memory.resident.saturating_sub(memory.process.resident)),
        double("fragmentation", ratio(memory.resident, memory.used)),
        int("fragmentation.bytes", memory.resident.saturating_sub(memory.used)),
    ];
    figures.extend(memory.process.parts.iter().map(|&(name, bytes)| int(name, bytes)));
    Reply::Map(figures)
}

/// MEMORY DOCTOR: unusual memory use, in words.
fn doctor(proxy: &Proxy) -> Reply {
    Reply::Text(diagnose(&MemoryStats::of(proxy), proxy.clients.len() as u64))
}

/// Maximum memory besides caches, memtables and clients: code, threads, the log's
/// buffers, the allocator.
const BEYOND_BUDGET: u64 = 120_000_000;

fn diagnose(memory: &MemoryStats, clients: u64) -> String {
    const SMALL: u64 = 64 << 20;
    let fragmentation = ratio(memory.resident, memory.used);
    let within = (memory.process.budget + memory.process.budget / 4).saturating_add(BEYOND_BUDGET);
    let findings = [
        (
            memory.process.budget > 0 && memory.resident > within,
            "Budget: more memory is resident than 1.25 times what the configuration gives \
             (node.memory) and 120 MB. Usual for a while after a burst of large answers; it is a \
             problem only if it stays.",
        ),
        (
            memory.peak > memory.used + memory.used / 2 && memory.peak > SMALL,
            "Peak memory: the server once used more than 150% of what it uses now. The allocator \
             gives unused pages back by and by, so a high resident set for a while is expected.",
        ),
        (
            fragmentation > 1.4 && memory.resident.saturating_sub(memory.used) > SMALL,
            "Fragmentation: much more memory is resident than allocated (over 1.4 times). Usual \
             after large answers or many connections were served; it is a problem only if it \
             grows.",
        ),
        (
            clients > 0 && memory.clients / clients.max(1) > 200 << 10,
            "Client buffers: clients hold more than 200 kB each on average. Some send large \
             pipelines or do not read their replies: CLIENT LIST shows them (qbuf, omem), \
             client-output-buffer-limit cuts them.",
        ),
        (
            memory.system > 0 && memory.resident > memory.system / 10 * 9,
            "The machine: over 90% of its memory is this process. Lower node.memory in the \
             configuration.",
        ),
    ];
    let found: Vec<_> =
        findings.into_iter().filter_map(|(is_so, text)| is_so.then_some(text)).collect();
    let found = match found.as_slice() {
        [] => "I found nothing out of the ordinary with memory: rows are on disk, and caches are \
               within their bounds.\n"
            .to_owned(),
        found => found.iter().map(|text| format!(" * {text}\n")).collect(),
    };
    found + &division(memory)
}

/// Budget and use of each part.
fn division(memory: &MemoryStats) -> String {
    let node = &memory.process;
    if node.shares.is_empty() {
        return String::new();
    }
    let taken = |name: &str| match name {
        "clients" => memory.clients,
        _ => node.parts.iter().find(|(part, _)| *part == name).map_or(0, |(_, bytes)| *bytes),
    };
    let share = |(name, bytes): &(&str, u64)| match bytes {
        0 => format!("{name} {}, without a bound", human(taken(name))),
        bytes => format!("{name} {} of {}", human(taken(name)), human(*bytes)),
    };
    let shares: Vec<String> = node.shares.iter().map(share).collect();
    format!("Of {} (node.memory): {}.\n", human(node.budget), shares.join(", "))
}

fn bulk(name: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doctor_finds_what_is_wrong() {
        let fine = MemoryStats {
            used: 100 << 20,
            peak: 110 << 20,
            resident: 120 << 20,
            clients: 1 << 20,
            system: 1 << 34,
            ..MemoryStats::default()
        };
        assert!(diagnose(&fine, 50).starts_with("I found nothing"));
        assert!(
            diagnose(&MemoryStats { peak: 200 << 20, ..fine.clone() }, 50).contains("Peak memory")
        );
        assert!(
            diagnose(&MemoryStats { resident: 300 << 20, ..fine.clone() }, 50)
                .contains("Fragmentation")
        );
        assert!(
            diagnose(&MemoryStats { clients: 50 << 20, ..fine.clone() }, 50)
                .contains("Client buffers")
        );
        assert!(
            diagnose(&MemoryStats { system: 125 << 20, ..fine.clone() }, 50)
                .contains("The machine")
        );
        let node = ProcessMemory {
            parts: vec![("block_cache", 3 << 20)],
            budget: 4 << 20,
            shares: vec![("block_cache", 2 << 20), ("clients", 0)],
            ..ProcessMemory::default()
        };
        let text = diagnose(
            &MemoryStats { resident: 124 << 20, process: node.clone(), ..fine.clone() },
            50,
        );
        assert!(
            text.contains("Budget:")
                && text.ends_with(
                    "Of 4.00M (node.memory): block_cache 3.00M of 2.00M, clients 1.00M, without a \
                     bound.\n"
                ),
            "{text}"
        );
        assert!(
            !diagnose(&MemoryStats { resident: 119 << 20, process: node, ..fine }, 50)
                .contains("Budget:")
        );
    }

    #[test]
    fn the_peak_only_rises() {
        let peak = MemoryPeak::default();
        assert_eq!((peak.reach(5), peak.reach(3), peak.reach(7)), (5, 5, 7));
    }

    #[test]
    fn stats_name_what_redis_names_and_the_parts() {
        let proxy = crate::fakes::proxy(&Default::default());
        let Reply::Map(figures) = stats(&proxy) else { panic!("a map") };
        let figure = |name: &'static str| {
            figures.iter().find(|(other, _)| *other == bulk(name)).map(|(_, value)| value.clone())
        };
        assert_eq!(figure("total.allocated"), Some(Reply::Int(100)));
        assert_eq!(figure("keys.count"), Some(Reply::Int(8)));
        assert_eq!(figure("keys.bytes-per-key"), Some(Reply::Int(5)));
        assert_eq!(figure("dataset.percentage"), Some(Reply::Double(40.0)));
        assert_eq!(figure("allocator-fragmentation.ratio"), Some(Reply::Double(1.5)));
        assert_eq!(figure("block_cache"), Some(Reply::Int(40)));
    }
}
