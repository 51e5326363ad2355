//! The memory of the process: `node.memory`, and the shares that derive from it.
//!
//! Half of it is for the block cache, a quarter for the row cache, an eighth for
//! memtables, an eighth for clients. An explicit setting overrides its share. Caches fill
//! by use only: a share is an upper bound, not a reservation.
//!
//! # Invariants
//! - No limit of one client is above the limit of all clients together: it is lowered,
//!   and the log says so (`limits_of_one_client_fit_the_limit_of_all`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AutoSize, ClientsShare, Config, SettingValue, Size};

/// `auto` is the machine's memory divided by this.
const PART_OF_MACHINE: u64 = 4;
/// Minimum of `auto`.
const MEMORY_MIN: u64 = 32 << 20;
/// The machine's memory, where the system does not report it.
const MACHINE_UNKNOWN: u64 = 1 << 30;
/// Unflushed rows are replayed after a crash, so their share does not grow with the
/// machine. The goal is a restart within 10 s.
const MEMTABLES_MAX: u64 = 512 << 20;
/// Four of the largest values that the defaults allow (16 MiB). With less, a client that
/// sends or reads a few of them in a pipeline would be evicted for its own arguments,
/// growing buffers and replies.
const CLIENTS_MIN: u64 = 64 << 20;
/// Minimum of a limit of one client.
const CLIENT_MIN: u64 = 1 << 20;

/// The memory available to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    bytes: u64,
    of: MemorySource,
}

/// The bound of the available memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MemorySource {
    Machine,
    Cgroup,
    Unknown,
}

impl Machine {
    /// Reads the system's files below `root` (`/`): the smallest of the machine's memory
    /// and the limits of this process's cgroups.
    pub(crate) fn detect(root: &Path) -> Machine {
        let limit = cgroup_limits(root).into_iter().min();
        match (machine_bytes(root), limit) {
            (Some(bytes), Some(limit)) if limit < bytes => {
                Machine { bytes: limit, of: MemorySource::Cgroup }
            }
            (None, Some(limit)) => Machine { bytes: limit, of: MemorySource::Cgroup },
            (Some(bytes), _) => Machine { bytes, of: MemorySource::Machine },
            (None, None) => Machine::unknown(),
        }
    }

    fn unknown() -> Machine {
        Machine { bytes: MACHINE_UNKNOWN, of: MemorySource::Unknown }
    }
}

fn machine_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
}

/// The memory limits of this process's cgroup and its ancestors, of versions 2 and 1.
fn cgroup_limits(root: &Path) -> Vec<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let hierarchies = mounts.lines().filter_map(CgroupHierarchy::parse);
    let dirs =
        hierarchies.filter_map(|hierarchy| Some((hierarchy.dirs(&groups)?, hierarchy.files)));
    let limit = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
    let limits = dirs.flat_map(|(dirs, files)| {
        dirs.into_iter().flat_map(move |dir| files.iter().map(move |file| dir.join(file)))
    });
    // No limit is "max" in version 2, which does not parse, and in version 1 a number
    // beyond any machine's memory.
    limits.filter_map(|file| limit(root.join(file.strip_prefix("/").unwrap_or(&file)))).collect()
}

/// A mounted tree of cgroups that may limit memory.
struct CgroupHierarchy<'a> {
    /// The mounted part of the tree.
    top: &'a str,
    at: &'a str,
    /// The controller's name in `/proc/self/cgroup`; empty in version 2.
    controller: &'static str,
    files: &'static [&'static str],
}

impl<'a> CgroupHierarchy<'a> {
    /// From a line of `/proc/self/mountinfo` (proc(5)):
    /// `31 23 0:28 <top> <at> rw,relatime - <type> <source> <options>`.
    fn parse(line: &'a str) -> Option<CgroupHierarchy<'a>> {
        let (place, kind) = line.split_once(" - ")?;
        let (mut place, mut kind) = (place.split(' ').skip(3), kind.split(' '));
        let (top, at) = (place.next()?, place.next()?);
        let (controller, files): (_, &[_]) = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => ("", &["memory.max", "memory.high"]),
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => {
                ("memory", &["memory.limit_in_bytes"])
            }
            _ => return None,
        };
        Some(CgroupHierarchy { top, at, controller, files })
    }

    /// The directories of the process's cgroup and its ancestors.
    fn dirs(&self, groups: &str) -> Option<Vec<PathBuf>> {
        let group = groups.lines().find_map(|line| {
            let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|controller| controller == self.controller).then_some(group)
        })?;
        // A container may see only its own part of the tree, and its name relative to the
        // whole tree or to its part.
        let group = group.strip_prefix(self.top).unwrap_or(group).trim_matches('/');
        let at = Path::new(self.at);
        let around = Path::new(group)
            .ancestors()
            .filter(|path| !path.starts_with(".."))
            .map(|path| at.join(path));
        Some(around.collect())
    }
}

fn whole_mib(bytes: u64) -> u64 {
    bytes & !((1 << 20) - 1)
}

/// The memory budget of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryBudget {
    bytes: u64,
    /// The machine that it is a quarter of; `None`: configured explicitly.
    quarter_of: Option<Machine>,
}

/// The shares of the memory, bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shares {
    /// The whole budget.
    pub(crate) memory: MemoryBudget,
    /// RocksDB's block cache.
    pub(crate) block_cache: u64,
    /// Recently read or written rows.
    pub(crate) row_cache: u64,
    /// Memtables and the write buffer in front of them.
    pub(crate) memtables: u64,
    /// Input, queued commands and unread replies of all clients together; 0: no limit.
    pub(crate) clients: u64,
}

impl MemoryBudget {
    /// The budget by this setting on this machine.
    pub(crate) fn of(setting: AutoSize, machine: Machine) -> MemoryBudget {
        match setting {
            AutoSize::Bytes(Size(bytes)) => MemoryBudget { bytes, quarter_of: None },
            AutoSize::Auto => {
                let quarter = whole_mib(machine.bytes / PART_OF_MACHINE);
                MemoryBudget { bytes: quarter.max(MEMORY_MIN), quarter_of: Some(machine) }
            }
        }
    }

    /// The budget in bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.bytes
    }

    /// The default shares.
    pub(crate) fn shares(self) -> Shares {
        Shares {
            memory: self,
            block_cache: self.bytes / 2,
            row_cache: self.bytes / 4,
            memtables: (self.bytes / 8).min(MEMTABLES_MAX),
            clients: (self.bytes / 8).max(CLIENTS_MIN),
        }
    }

    /// Time for which the allocator keeps freed pages: a second, less with a small
    /// budget. Under load these pages are some 50 MB, which is much for 64 MiB and little
    /// for a GiB.
    pub(crate) fn dirty_page_decay(self) -> Duration {
        Duration::from_millis((self.bytes >> 19).clamp(100, 1000))
    }

    /// The budget and its origin, for people.
    pub(crate) fn text(self) -> String {
        let shown = |bytes: u64| Size(whole_mib(bytes)).human();
        match self.quarter_of {
            None => format!("{}, as configured", Size(self.bytes).human()),
            Some(machine) => {
                let of = match machine.of {
                    MemorySource::Machine => format!("of this machine's {}", shown(machine.bytes)),
                    MemorySource::Cgroup => {
                        format!("of its cgroup's {}", shown(machine.bytes))
                    }
                    MemorySource::Unknown => format!(
                        "of {}, as the system does not report its memory",
                        shown(machine.bytes)
                    ),
                };
                format!("{}, a quarter {of}", shown(self.bytes))
            }
        }
    }
}

impl Shares {
    /// The shares by name, as in INFO and the log.
    pub(crate) fn parts(&self) -> [(&'static str, u64); 4] {
        [
            ("block_cache", self.block_cache),
            ("row_cache", self.row_cache),
            ("memtables", self.memtables),
            ("clients", self.clients),
        ]
    }
}

impl Default for Shares {
    /// The shares on an unknown machine.
    fn default() -> Shares {
        MemoryBudget::of(AutoSize::Auto, Machine::unknown()).shares()
    }
}

impl Config {
    /// Divides the memory, and lowers the limits of one client to the limit of all
    /// clients; returns a warning for each limit that was set explicitly.
    pub(super) fn resolve_memory(&mut self, machine: Machine) -> Result<Vec<String>, String> {
        let mut shares = MemoryBudget::of(self.node.memory, machine).shares();
        let set = [
            (self.storage.block_cache, &mut shares.block_cache),
            (self.storage.row_cache, &mut shares.row_cache),
            (self.storage.memtables, &mut shares.memtables),
        ];
        for (setting, share) in set {
            if let AutoSize::Bytes(Size(bytes)) = setting {
                *share = bytes;
            }
        }
        match self.proxy.maxmemory_clients {
            ClientsShare::Auto => {}
            ClientsShare::Percent(percent) => {
                shares.clients = (shares.memory.bytes() / 100 * u64::from(percent)).max(CLIENT_MIN)
            }
            ClientsShare::Bytes(Size(bytes)) => shares.clients = bytes,
        }
        if (1..CLIENT_MIN).contains(&shares.clients) {
            return Err(
                "proxy.maxmemory_clients: must be at least \"1MiB\", or 0 for no limit".to_owned()
            );
        }
        let clients = Size(shares.clients);
        self.shares = shares;
        Ok(if clients.0 == 0 { Vec::new() } else { self.lower_limits_of_clients(clients) })
    }

    fn lower_limits_of_clients(&mut self, clients: Size) -> Vec<String> {
        let defaults = Config::defaults();
        let limits = [
            (
                "proxy.client_output_buffer_limit",
                &mut self.proxy.client_output_buffer_limit,
                defaults.proxy.client_output_buffer_limit,
            ),
            (
                "proxy.client_query_buffer_limit",
                &mut self.proxy.client_query_buffer_limit,
                defaults.proxy.client_query_buffer_limit,
            ),
            (
                "proxy.proto_max_bulk_len",
                &mut self.proxy.proto_max_bulk_len,
                defaults.proxy.proto_max_bulk_len,
            ),
            (
                "storage.max_write_size",
                &mut self.storage.max_write_size,
                defaults.storage.max_write_size,
            ),
            (
                "storage.max_answer_size",
                &mut self.storage.max_answer_size,
                defaults.storage.max_answer_size,
            ),
        ];
        let mut lowered = Vec::new();
        for (key, limit, default) in limits {
            if *limit <= clients {
                continue;
            }
            // A default is lowered silently.
            if *limit != default {
                lowered.push(format!(
                    "{key} = {} is lowered to {}, the limit of all clients together \
                     (proxy.maxmemory_clients, an eighth of node.memory)",
                    limit.text(),
                    clients.text()
                ));
            }
            *limit = clients;
        }
        lowered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these files.
    fn system(files: &[(&str, &str)]) -> Machine {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Machine::detect(root.path())
    }

    fn auto(machine: Machine) -> Shares {
        MemoryBudget::of(AutoSize::Auto, machine).shares()
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       16384000 kB\nMemFree:         1024 kB\n");
    const V2: (&str, &str) = (
        "proc/self/mountinfo",
        "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    );

    #[test]
    fn auto_is_a_quarter_of_the_machine() {
        let machine = system(&[MEMINFO]);
        assert_eq!(machine, Machine { bytes: 16_384_000 << 10, of: MemorySource::Machine });
        let shares = auto(machine);
        assert_eq!(shares.memory.bytes(), 4000 << 20);
        assert_eq!(
            shares.parts(),
            [
                ("block_cache", 2000 << 20),
                ("row_cache", 1000 << 20),
                ("memtables", 500 << 20),
                ("clients", 500 << 20)
            ]
        );
        assert_eq!(shares.memory.text(), "4000MiB, a quarter of this machine's 16000MiB");
        assert_eq!(shares.memory.dirty_page_decay(), Duration::from_secs(1));
        // The replay after a crash does not grow with the machine.
        assert_eq!(
            auto(Machine { bytes: 1 << 40, of: MemorySource::Machine }).memtables,
            512 << 20
        );
    }

    #[test]
    fn little_memory_still_fits_the_largest_write() {
        let shares = MemoryBudget::of(AutoSize::Bytes(Size::mib(64)), Machine::unknown()).shares();
        assert_eq!(
            shares.parts(),
            [
                ("block_cache", 32 << 20),
                ("row_cache", 16 << 20),
                ("memtables", 8 << 20),
                ("clients", 64 << 20)
            ]
        );
        assert_eq!(shares.memory.dirty_page_decay(), Duration::from_millis(128));
        assert_eq!(
            auto(Machine { bytes: 1 << 20, of: MemorySource::Cgroup }).memory.bytes(),
            MEMORY_MIN
        );
    }

    #[test]
    fn an_unknown_machine_counts_as_a_small_one() {
        for files in [
            &[][..],
            &[("proc/meminfo", "nonsense")],
            &[V2, ("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "max\n")],
        ] {
            assert_eq!(system(files), Machine::unknown());
        }
        assert_eq!(auto(Machine::unknown()), Shares::default());
    }

    #[test]
    fn the_narrowest_cgroup_of_version_2_holds() {
        let group = ("proc/self/cgroup", "0::/system.slice/bridle.service\n");
        let inner = ("sys/fs/cgroup/system.slice/bridle.service/memory.max", "max\n");
        assert_eq!(system(&[MEMINFO, V2, group, inner]).of, MemorySource::Machine);
        let outer = ("sys/fs/cgroup/system.slice/memory.max", "2147483648\n");
        assert_eq!(
            system(&[MEMINFO, V2, group, inner, outer]),
            Machine { bytes: 2 << 30, of: MemorySource::Cgroup }
        );
        let high = ("sys/fs/cgroup/system.slice/bridle.service/memory.high", "1073741824\n");
        assert_eq!(system(&[MEMINFO, V2, group, inner, outer, high]).bytes, 1 << 30);
        // A container with a namespace of its own sees itself at the root.
        let own = [
            MEMINFO,
            V2,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "536870912\n"),
        ];
        assert_eq!(system(&own).bytes, 512 << 20);
        let beside = [
            MEMINFO,
            V2,
            ("proc/self/cgroup", "0::/../other\n"),
            ("sys/fs/cgroup/memory.max", "536870912\n"),
        ];
        assert_eq!(system(&beside).bytes, 512 << 20);
        let more = [
            MEMINFO,
            V2,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "99999999999999\n"),
        ];
        assert_eq!(system(&more).of, MemorySource::Machine);
    }

    #[test]
    fn limits_of_version_1_hold_too() {
        let mounts = |top: &str| {
            format!(
                "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 {top} \
                 /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n41 31 0:38 / \
                 /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            )
        };
        let groups = (
            "proc/self/cgroup",
            "9:name=systemd:/\n4:memory,hugetlb:/docker/0123\n1:cpu:/docker/0123\n0::/\n",
        );
        let limit = |path: &'static str, text: &'static str, top: &str| {
            let mounts = mounts(top);
            system(&[
                MEMINFO,
                groups,
                ("proc/self/mountinfo", &mounts),
                ("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1"),
                (path, text),
            ])
        };
        let half = Machine { bytes: 512 << 20, of: MemorySource::Cgroup };
        assert_eq!(
            limit("sys/fs/cgroup/memory/docker/0123/memory.limit_in_bytes", "536870912\n", "/"),
            half
        );
        // Docker mounts only the container's part, and names it relative to the whole
        // tree.
        assert_eq!(
            limit("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n", "/docker/0123"),
            half
        );
        let none = "9223372036854771712\n";
        assert_eq!(
            limit("sys/fs/cgroup/memory/docker/0123/memory.limit_in_bytes", none, "/").of,
            MemorySource::Machine
        );
    }

    fn settled(text: &str) -> Result<(Config, Vec<String>), String> {
        let mut config = Config::defaults();
        config.read("test.toml", text).map_err(|refused| refused.to_string())?;
        let lowered = config.resolve_memory(Machine::unknown())?;
        Ok((config, lowered))
    }

    #[test]
    fn explicit_sizes_override_the_shares() {
        let (config, _) = settled(
            "[node]\nmemory = \"1GiB\"\n[storage]\nrow_cache = \
             \"3MiB\"\n[proxy]\nmaxmemory_clients = \"100MiB\"\n",
        )
        .unwrap();
        assert_eq!(
            config.shares.parts(),
            [
                ("block_cache", 512 << 20),
                ("row_cache", 3 << 20),
                ("memtables", 128 << 20),
                ("clients", 100 << 20)
            ]
        );
        assert_eq!(config.shares.memory.text(), "1GiB, as configured");
        assert!(
            settled("[node]\nmemory = \"1MiB\"\n").unwrap_err().contains("must be from \"32MiB\"")
        );
        assert!(
            settled("[node]\nmemory = \"much\"\n")
                .unwrap_err()
                .contains("`much` is not a size like \"16MiB\", or bytes, or \"auto\"")
        );
        assert!(
            settled("[proxy]\nmaxmemory_clients = \"1kB\"\n")
                .unwrap_err()
                .contains("at least \"1MiB\", or 0")
        );
    }

    #[test]
    fn limits_of_one_client_fit_the_limit_of_all() {
        let limits = |config: &Config| {
            let (proxy, storage) = (&config.proxy, &config.storage);
            let sizes = [
                proxy.client_output_buffer_limit,
                proxy.client_query_buffer_limit,
                proxy.proto_max_bulk_len,
            ];
            sizes
                .into_iter()
                .chain([storage.max_write_size, storage.max_answer_size])
                .map(|size| size.0 >> 20)
                .collect::<Vec<_>>()
        };
        let (config, lowered) = settled("[node]\nmemory = \"8GiB\"\n").unwrap();
        assert_eq!((limits(&config), lowered.len()), (vec![256, 64, 16, 16, 512], 0));
        let (config, lowered) = settled("[node]\nmemory = \"64MiB\"\n").unwrap();
        assert_eq!(
            (limits(&config), lowered.len()),
            (vec![64, 64, 16, 16, 64], 0),
            "defaults are lowered without a warning"
        );
        let (config, lowered) =
            settled("[proxy]\nmaxmemory_clients = \"2MiB\"\nproto_max_bulk_len = \"3MiB\"\n")
                .unwrap();
        assert_eq!(limits(&config), [2; 5]);
        assert_eq!(lowered.len(), 1);
        assert!(
            lowered[0].starts_with("proxy.proto_max_bulk_len = \"3MiB\" is lowered to \"2MiB\""),
            "{lowered:?}"
        );
        let (config, lowered) = settled("[proxy]\nmaxmemory_clients = 0\n").unwrap();
        assert_eq!((limits(&config), lowered.len()), (vec![256, 64, 16, 16, 512], 0));
    }
}
