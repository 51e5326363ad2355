//! The process's log, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSection};

/// Starts logging; once per process.
pub(crate) fn start(settings: &LogSection) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter(&settings.level.0))?;
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match settings.format {
        LogFormat::Text => logger.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => logger
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}

/// Lowers openraft's verbosity unless the operator names it: it logs every step of every
/// group at `info`, and every message to a peer that is down at `warn`. Two of its parts
/// report a stopped group at `error`, which the owner of the group logs in better words.
fn filter(level: &str) -> String {
    const SILENCED: [&str; 2] = ["openraft::raft::raft_inner", "openraft::core::heartbeat"];
    match level.contains("openraft") {
        true => level.to_owned(),
        false => format!("openraft=error,{}=off,{}=off,{level}", SILENCED[0], SILENCED[1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openraft_is_quiet_unless_named() {
        assert!(
            filter("debug,storage=trace").starts_with("openraft=error,")
                && filter("debug,storage=trace").ends_with(",debug,storage=trace")
        );
        assert_eq!(filter("info,openraft=debug"), "info,openraft=debug");
        assert!(EnvFilter::try_new(filter("off")).is_ok());
    }
}
