//! Section `[cluster]` of a process of a cluster: validation, and values derived from it.

use std::net::SocketAddr;

use cluster::meta_protocol::{Roles, ZONE_BYTES_MAX};
use cluster::net::{NetTls, Secret as NetSecret};

use super::{Address, ClusterSection, Config, Secret, Size};

/// Maximum size of a write in a cluster: it must fit into a message between replicas,
/// together with others that share its entry.
const WRITE_MAX: Size = Size::mib(16);
/// Minimum length of a secret.
const SECRET_BYTES_MIN: usize = 16;

impl ClusterSection {
    /// The address at which others reach this process, which listens at `bound`.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> String {
        self.advertise.as_ref().map_or_else(|| bound.to_string(), |address| address.0.clone())
    }

    /// The position of this process in the list of metas, the first is 1; `None`: it is
    /// no meta.
    pub(crate) fn meta_index(&self) -> Option<u32> {
        let own = self
            .advertise
            .as_ref()
            .map_or_else(|| self.listen.to_string(), |address| address.0.clone());
        self.metas
            .iter()
            .position(|meta| meta.0 == own)
            .and_then(|place| u32::try_from(place + 1).ok())
    }

    /// The addresses of the metas.
    pub(crate) fn meta_addresses(&self) -> Vec<String> {
        self.metas.iter().map(|meta| meta.0.clone()).collect()
    }

    /// The secret, if there is one.
    pub(crate) fn net_secret(&self) -> Option<NetSecret> {
        NetSecret::new(self.secret.reveal()).ok()
    }

    /// TLS between the processes is on.
    pub(crate) fn has_tls(&self) -> bool {
        !self.cert_file.as_os_str().is_empty()
    }

    /// TLS, if it is set.
    pub(crate) fn net_tls(&self) -> Option<NetTls> {
        let name = Some(&self.tls_name).filter(|name| !name.is_empty()).cloned();
        let tls = NetTls {
            ca: self.ca_file.clone(),
            cert: self.cert_file.clone(),
            key: self.key_file.clone(),
            name,
        };
        self.has_tls().then_some(tls)
    }
}

impl Config {
    /// Validates the section for a process with these wanted roles, and reads
    /// `secret_file`. Returns the roles that the process has.
    pub(crate) fn resolve_cluster(&mut self, wanted: Roles) -> Result<Roles, String> {
        let section = &mut self.cluster;
        if !section.secret_file.as_os_str().is_empty() {
            if !section.secret.is_empty() {
                return Err("cluster.secret and cluster.secret_file are both set: keep only one \
                            of them"
                    .into());
            }
            section.secret = Secret::from_file(&section.secret_file)?;
        }
        let secret_bytes = section.secret.reveal().len();
        if secret_bytes != 0 && secret_bytes < SECRET_BYTES_MIN {
            return Err(format!(
                "the cluster's secret has {secret_bytes} characters: with fewer than \
                 {SECRET_BYTES_MIN} it can be guessed"
            ));
        }
        let files = [&section.cert_file, &section.key_file, &section.ca_file];
        let has_tls = files.iter().all(|file| !file.as_os_str().is_empty());
        if !has_tls && files.iter().any(|file| !file.as_os_str().is_empty()) {
            return Err("TLS between processes needs all of cluster.cert_file, cluster.key_file \
                        and cluster.ca_file"
                .into());
        }
        let listen = section.listen;
        if section.protected_mode && !listen.ip().is_loopback() && secret_bytes == 0 && !has_tls {
            return Err(format!(
                "cluster.listen = {listen} is open to other machines, and the cluster has neither \
                 a secret nor TLS: everyone who can reach it would own the data. Set \
                 cluster.secret_file (or --secret-file), or cluster.cert_file, key_file and \
                 ca_file, or listen on 127.0.0.1, or set cluster.protected_mode = false if the \
                 network itself is safe"
            ));
        }
        if listen.ip().is_unspecified() && section.advertise.is_none() {
            return Err(format!(
                "cluster.listen = {listen} is not an address that others can reach: set \
                 cluster.advertise to one"
            ));
        }
        if section.zone.len() > ZONE_BYTES_MAX {
            return Err(format!(
                "cluster.zone has {} bytes; the maximum is {ZONE_BYTES_MAX}",
                section.zone.len()
            ));
        }
        if self.storage.max_write_size > WRITE_MAX {
            return Err("storage.max_write_size: in a cluster at most \"16MiB\", as it must fit \
                        a message between replicas"
                .into());
        }
        self.check_metas(wanted)
    }

    /// A warning when a password is set but the cluster's port is open, since the port
    /// does not ask for it. On an address that other machines can reach this is refused;
    /// on loopback it is a warning.
    pub(crate) fn unguarded(&self) -> Option<String> {
        let section = &self.cluster;
        let is_open = !section.metas.is_empty() && section.secret.is_empty() && !section.has_tls();
        (is_open && !self.proxy.requirepass.is_empty()).then(|| {
            let listen = section.listen;
            format!(
                "proxy.requirepass is set, but the cluster's port ({listen}) has neither a secret \
                 nor TLS: its clients can read, write and administer without the password. Set \
                 cluster.secret_file (--secret-file) on all processes"
            )
        })
    }

    fn check_metas(&self, wanted: Roles) -> Result<Roles, String> {
        let section = &self.cluster;
        let mut seen: Vec<&Address> = Vec::new();
        for meta in &section.metas {
            if seen.contains(&meta) {
                return Err(format!("cluster.metas contains {} twice", meta.0));
            }
            seen.push(meta);
        }
        if ![1, 3, 5].contains(&seen.len()) {
            return Err(format!(
                "cluster.metas (--metas) has {} addresses: it must list host:port of 1, 3 or 5 \
                 metas",
                seen.len()
            ));
        }
        let is_meta = section.meta_index().is_some();
        let is_meta_alone = wanted.meta && !wanted.storage && !wanted.proxy;
        if is_meta_alone && !is_meta {
            let listed = section.meta_addresses().join(", ");
            let own = section.advertised(section.listen);
            return Err(format!(
                "this meta's address {own} (cluster.advertise, or else cluster.listen) is not in \
                 cluster.metas: {listed}"
            ));
        }
        if is_meta && !wanted.meta {
            return Err(format!(
                "{} is in cluster.metas, but this process is not a meta: run it as `bridle node` \
                 or `bridle meta`",
                section.advertised(section.listen)
            ));
        }
        Ok(Roles { meta: is_meta, ..wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Roles = Roles { meta: true, storage: true, proxy: true };
    const META: Roles = Roles { meta: true, storage: false, proxy: false };

    fn resolve(text: &str, roles: Roles) -> Result<Roles, String> {
        let mut config = Config::defaults();
        config
            .read("test.toml", &format!("[cluster]\n{text}\n"))
            .map_err(|refused| refused.reason)?;
        config.resolve_cluster(roles)
    }

    #[test]
    fn processes_in_the_list_are_metas() {
        let metas = "metas = [\"127.0.0.1:7201\", \"b:1\", \"[::1]:1\"]";
        assert_eq!(resolve(metas, NODE), Ok(NODE));
        assert_eq!(
            resolve(&format!("{metas}\nadvertise = \"d:1\""), NODE),
            Ok(Roles { meta: false, ..NODE })
        );
        assert!(
            resolve(&format!("{metas}\nadvertise = \"d:1\""), META)
                .unwrap_err()
                .contains("d:1 (cluster.advertise")
        );
        assert!(
            resolve(metas, Roles { meta: false, ..NODE })
                .unwrap_err()
                .contains("this process is not a meta")
        );
        let mut config = Config::defaults();
        config.read("", &format!("[cluster]\n{metas}\nadvertise = \"[::1]:1\"")).unwrap();
        assert_eq!(
            (config.cluster.meta_index(), config.cluster.advertise.as_ref().map(Address::host)),
            (Some(3), Some("::1"))
        );
    }

    #[test]
    fn wrong_lists_are_refused() {
        assert!(resolve("", NODE).unwrap_err().contains("has 0 addresses"));
        assert!(resolve("metas = [\"a:1\", \"b:1\"]", NODE).unwrap_err().contains("1, 3 or 5"));
        assert!(
            resolve("metas = [\"a:1\", \"b:1\", \"a:1\"]", NODE).unwrap_err().contains("a:1 twice")
        );
        for bad in ["a", "a:", ":1", "a:0", "a:70000", "a b:1", "::1:1", "[a]:1"] {
            assert!(
                resolve(&format!("metas = [\"{bad}\"]"), NODE)
                    .unwrap_err()
                    .contains("is not a host and port"),
                "{bad}"
            );
        }
    }

    #[test]
    fn password_without_cluster_secret_is_warned_about() {
        let unguarded = |password: &str, text: &str| {
            let mut config = Config::defaults();
            config
                .read("", &format!("[proxy]\nrequirepass = \"{password}\"\n[cluster]\n{text}\n"))
                .unwrap();
            config.unguarded()
        };
        let metas = "metas = [\"127.0.0.1:7201\"]";
        assert!(unguarded("x", metas).unwrap().contains("127.0.0.1:7201"));
        assert_eq!(unguarded("", metas), None);
        assert_eq!(unguarded("x", ""), None, "standalone has no such port");
        assert_eq!(unguarded("x", &format!("{metas}\nsecret = \"0123456789abcdef\"")), None);
        assert_eq!(
            unguarded(
                "x",
                &format!("{metas}\ncert_file = \"a\"\nkey_file = \"b\"\nca_file = \"c\"")
            ),
            None
        );
    }

    #[test]
    fn an_open_cluster_port_needs_a_secret_or_tls() {
        let open = "metas = [\"a:1\"]\nlisten = \"0.0.0.0:7201\"\nadvertise = \"a:1\"";
        assert!(resolve(open, NODE).unwrap_err().contains("neither a secret nor TLS"));
        assert!(
            resolve(&format!("{open}\nsecret = \"short\""), NODE)
                .unwrap_err()
                .contains("5 characters")
        );
        resolve(&format!("{open}\nsecret = \"0123456789abcdef\""), NODE).unwrap();
        resolve(&format!("{open}\ncert_file = \"a\"\nkey_file = \"b\"\nca_file = \"c\""), NODE)
            .unwrap();
        assert!(
            resolve(&format!("{open}\ncert_file = \"a\""), NODE)
                .unwrap_err()
                .contains("needs all of")
        );
        resolve(&format!("{open}\nprotected_mode = false"), NODE).unwrap();
        let nowhere = "metas = [\"a:1\"]\nlisten = \"0.0.0.0:7201\"\nprotected_mode = false";
        assert!(resolve(nowhere, NODE).unwrap_err().contains("cluster.advertise"));
    }
}
