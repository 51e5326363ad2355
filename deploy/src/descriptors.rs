//! The limit of open files and sockets (`ulimit -n`), and the share of clients in it.
//!
//! Without a free descriptor RocksDB can't create the file of its next flush, and the
//! partition stops. So the process raises the limit as far as the system allows, and
//! clients, which hold a descriptor before they authenticate, get at most two thirds of
//! it. RocksDB keeps every table file open; the last third is for these, the log and the
//! other processes of a cluster.

use anyhow::bail;
use cluster::net::HALF_OPEN_MAX;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::http;

/// The limit asked for: the kernel's default bound (`fs.nr_open`), more than any process
/// needs.
const WANTED: u64 = 1 << 20;
/// Descriptors in use before the first client connects: ports, runtimes, the log, locks.
const OWN: u64 = 64;
/// Minimum for the files of rows. Redis reserves the same number.
const FILES_MIN: u64 = 32;

/// The process's limit of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    limit: u64,
    /// Maximum in use for anything but clients and files of rows.
    others: u64,
}

impl Descriptors {
    /// Raises the limit as far as the system allows.
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
        let half_open = if in_cluster { HALF_OPEN_MAX } else { 0 };
        let others = OWN + (http::CONNECTIONS_MAX + half_open) as u64;
        let least = others + 3 * FILES_MIN;
        if limit < least {
            bail!(
                "Your current 'ulimit -n' of {limit} is not enough for the server to start. \
                 Please increase your open file limit to at least {least}. Exiting."
            );
        }
        Ok(Descriptors { limit, others })
    }

    /// Maximum number of clients.
    fn clients(self) -> u32 {
        u32::try_from((self.limit - self.others) / 3 * 2).unwrap_or(u32::MAX)
    }

    /// Reduces `maxclients` to the descriptors that are available.
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
