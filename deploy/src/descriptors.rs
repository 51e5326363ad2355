//! How many files and sockets the process may have open (`ulimit -n`), and how many of
//! them clients may take.
//!
//! When none is left, RocksDB can't open the file of its next flush, and that stops a
//! partition. So the process takes all that the system grants, and clients, who need not
//! even authenticate to hold one, get no more than two thirds of it: RocksDB keeps every
//! file of rows open, and the last third is for these, the log and the other processes of
//! a cluster.

use anyhow::bail;
use cluster::net::HALF_OPEN_MAX;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::http;

/// No process needs more; the kernel's own bound (`fs.nr_open`) is the same, where nobody
/// has changed it.
const WANTED: u64 = 1 << 20;
/// What the process has open before the first client comes: ports, runtimes, the log,
/// locks.
const OWN: u64 = 64;
/// With fewer for its files no server is of any use. It is Redis's reserve.
const FILES_MIN: u64 = 32;

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    limit: u64,
    /// Held by others than clients, at most, and files of rows.
    others: u64,
}

impl Descriptors {
    /// Raises the limit as far as the system lets it.
    pub(crate) fn raise_limit(in_cluster: bool) -> anyhow::Result<Descriptors> {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = maximum.unwrap_or(WANTED).min(WANTED);
        let limit = match current {
            Some(current) if current < wanted => {
                match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
                    Ok(()) => {
                        tracing::info!(
                            "Increased maximum number of open files to {wanted} (it was \
                             originally set to {current})."
                        );
                        wanted
                    }
                    Err(error) => {
                        tracing::warn!(
                            "Server can't set maximum open files to {wanted} because of OS error: \
                             {error}."
                        );
                        current
                    }
                }
            }
            current => current.unwrap_or(u64::MAX),
        };
        Descriptors::of(limit, in_cluster)
    }

    fn of(limit: u64, in_cluster: bool) -> anyhow::Result<Descriptors> {
        let strangers = if in_cluster { HALF_OPEN_MAX } else { 0 };
        let others = OWN + (http::CONNECTIONS_MAX + strangers) as u64;
        let least = others + 3 * FILES_MIN;
        if limit < least {
            bail!(
                "Your current 'ulimit -n' of {limit} is not enough for the server to start. \
                 Please increase your open file limit to at least {least}. Exiting."
            );
        }
        Ok(Descriptors { limit, others })
    }

    /// Clients that there is room for.
    fn clients(self) -> u32 {
        u32::try_from((self.limit - self.others) / 3 * 2).unwrap_or(u32::MAX)
    }

    /// Sees to it that no more clients are let in than there is room for.
    pub(crate) fn limit_clients(self, settings: &mut proxy::Settings) {
        settings.clients_fit = self.clients() as usize;
        let wanted = settings.clients_max;
        if wanted <= settings.clients_fit {
            return;
        }
        settings.clients_max = settings.clients_fit;
        let (limit, needed) = (self.limit, (wanted as u64).div_ceil(2) * 3 + self.others);
        tracing::warn!(
            "You requested maxclients of {wanted} requiring at least {needed} max file \
             descriptors."
        );
        tracing::warn!(
            "Current maximum open files is {limit}. maxclients has been reduced to {} to \
             compensate for low ulimit. If you need higher maxclients increase 'ulimit -n'.",
            settings.clients_max
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_two_thirds_of_the_descriptors() {
        let clients = |limit, in_cluster| {
            Descriptors::of(limit, in_cluster)
                .map(Descriptors::clients)
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            (clients(256, false), clients(1024, false), clients(1024, true)),
            (Ok(80), Ok(592), Ok(420))
        );
        assert!(clients(15_136, false) == Ok(10_000) && clients(1 << 20, true).unwrap() >= 600_000);
        assert!(clients(u64::MAX, true).is_ok());
        assert!(clients(231, false).unwrap_err().contains("at least 232"));
        assert!(clients(256, true).unwrap_err().contains("at least 488"));
    }

    #[test]
    fn maxclients_is_reduced_to_fit_the_open_file_limit() {
        let mut settings = proxy::Settings::default();
        Descriptors::of(1 << 20, false).unwrap().limit_clients(&mut settings);
        assert_eq!((settings.clients_max, settings.clients_fit), (10_000, 698_960));
        Descriptors::of(256, false).unwrap().limit_clients(&mut settings);
        assert_eq!((settings.clients_max, settings.clients_fit), (80, 80));
    }
}
