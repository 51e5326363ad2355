//! The sockets of a process: bound before anything else is begun, so that a taken port leaves no trace.

use std::io;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use cluster::news::Roles;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::Config;

/// Sockets that are bound.
pub(crate) struct Ports {
    pub(crate) plain: Vec<TcpListener>,
    pub(crate) tls: Vec<TcpListener>,
    pub(crate) http: std::net::TcpListener,
    /// For the other processes of the cluster.
    pub(crate) cluster: Option<std::net::TcpListener>,
}

/// Where they are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) plain: Vec<SocketAddr>,
    pub(crate) tls: Vec<SocketAddr>,
    pub(crate) http: SocketAddr,
    pub(crate) cluster: Option<SocketAddr>,
}

impl Ports {
    /// Binds what these roles need.
    pub(crate) fn bind(config: &Config, roles: Roles, in_cluster: bool) -> anyhow::Result<Ports> {
        let bind = |ip: &IpAddr, port, key: &str| {
            listen(SocketAddr::new(*ip, port), config.proxy.tcp_backlog).with_context(|| match port {
                0 => format!("bind {ip} ({key})"),
                port => format!("bind {ip} port {port} ({key})"),
            })
        };
        let http = bind(&config.http.bind, config.http.port, "http.port, --http-port")?.into_std()?;
        let mut ports = Ports { plain: Vec::new(), tls: Vec::new(), http, cluster: None };
        if in_cluster {
            let at = config.cluster.listen;
            ports.cluster = Some(bind(&at.ip(), at.port(), "cluster.listen, --listen")?.into_std()?);
        }
        if !roles.proxy {
            return Ok(ports);
        }
        // With port 0, all addresses get the same port: that of the first.
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
        Ok(ports)
    }

    /// Where they are bound.
    pub(crate) fn places(&self) -> io::Result<Places> {
        let addresses = |listeners: &[TcpListener]| listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>();
        Ok(Places {
            plain: addresses(&self.plain)?,
            tls: addresses(&self.tls)?,
            http: self.http.local_addr()?,
            cluster: self.cluster.as_ref().map(std::net::TcpListener::local_addr).transpose()?,
        })
    }
}

fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}
