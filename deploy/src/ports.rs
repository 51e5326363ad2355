//! The sockets of a process. They are bound before anything else starts, so that a port
//! in use leaves no trace.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, bail};
use cluster::meta_protocol::Roles;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::config::{Config, FileMode};

/// Bound sockets of a process.
pub(crate) struct Ports {
    pub(crate) plain: Vec<TcpListener>,
    pub(crate) tls: Vec<TcpListener>,
    pub(crate) unix: Option<(UnixListener, UnixPath)>,
    pub(crate) http: std::net::TcpListener,
    /// For the other processes of the cluster.
    pub(crate) cluster: Option<std::net::TcpListener>,
}

/// Addresses of the bound sockets.
#[derive(Debug, Clone)]
pub(crate) struct BoundAddresses {
    pub(crate) plain: Vec<SocketAddr>,
    pub(crate) tls: Vec<SocketAddr>,
    pub(crate) http: SocketAddr,
    pub(crate) cluster: Option<SocketAddr>,
}

impl Ports {
    /// Binds the sockets that these roles need.
    pub(crate) fn bind(config: &Config, roles: Roles, in_cluster: bool) -> anyhow::Result<Ports> {
        let bind = |ip: &IpAddr, port, key: &str| {
            listen(SocketAddr::new(*ip, port), config.proxy.tcp_backlog).with_context(|| match port
            {
                0 => format!("bind {ip} ({key})"),
                port => format!("bind {ip} port {port} ({key})"),
            })
        };
        let http =
            bind(&config.http.bind, config.http.port, "http.port, --http-port")?.into_std()?;
        let mut ports =
            Ports { plain: Vec::new(), tls: Vec::new(), unix: None, http, cluster: None };
        if in_cluster {
            let at = config.cluster.listen;
            ports.cluster =
                Some(bind(&at.ip(), at.port(), "cluster.listen, --listen")?.into_std()?);
        }
        if !roles.proxy {
            return Ok(ports);
        }
        // With port 0, all addresses use the port of the first one.
        let (mut plain, mut tls) = (config.proxy.port, config.tls.port);
        for ip in &config.proxy.bind {
            if !config.tls.only {
                ports.plain.push(bind(ip, plain, "proxy.port, --port")?);
                plain = ports.plain[0].local_addr()?.port();
            }
            if config.tls.port != 0 {
                ports.tls.push(bind(ip, tls, "tls.port")?);
                tls = ports.tls[0].local_addr()?.port();
            }
        }
        if !config.proxy.unixsocket.as_os_str().is_empty() {
            let path = &config.proxy.unixsocket;
            let unix = listen_at(path, config.proxy.unixsocketperm);
            ports.unix =
                Some(unix.with_context(|| format!("bind {} (proxy.unixsocket)", path.display()))?);
        }
        Ok(ports)
    }

    /// The addresses of the sockets.
    pub(crate) fn bound(&self) -> io::Result<BoundAddresses> {
        let addresses = |listeners: &[TcpListener]| {
            listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()
        };
        Ok(BoundAddresses {
            plain: addresses(&self.plain)?,
            tls: addresses(&self.tls)?,
            http: self.http.local_addr()?,
            cluster: self.cluster.as_ref().map(std::net::TcpListener::local_addr).transpose()?,
        })
    }
}

/// The file of a Unix socket, removed on drop.
pub(crate) struct UnixPath {
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl UnixPath {
    /// The path as configured.
    pub(crate) fn text(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        // Another process may have replaced the file since.
        if fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file) {
            // Best effort, as in Redis: the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a Unix socket, and replaces a stale one.
fn listen_at(path: &Path, mode: FileMode) -> anyhow::Result<(UnixListener, UnixPath)> {
    if let Ok(there) = fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            bail!("the file exists and is not a socket");
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => bail!("another process listens on it"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).context("remove a stale socket")?
            }
            Err(error) => {
                return Err(error).context("check for another process that listens on it");
            }
        }
    }
    let listener = UnixListener::bind(path)?;
    let made = fs::symlink_metadata(path)?;
    let unix = UnixPath { path: path.to_owned(), file: (made.dev(), made.ino()) };
    if let Some(mode) = mode.0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .context("set its permissions (proxy.unixsocketperm)")?;
    }
    Ok((listener, unix))
}

fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}
