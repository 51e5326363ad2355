//! `bridle standalone`: the whole of Bridle in one process, from the configuration to the last flush.
//!
//! # Threads
//! Three runtimes, so that no kind of work can hold up another: Redis clients and executors; Raft; and a small one for everything that is not on the
//! way of a command (HTTP, catalogue, signals). The log and RocksDB have threads of their own.

use std::future::IntoFuture;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use engine::log::{Log, LogOptions};
use engine::store::{Settings, Shared};
use meta::{Meta, MetaOptions};
use metrics_exporter_prometheus::PrometheusHandle;
use proxy::tls::TlsFiles;
use proxy::{Facts, Proxy};
use storage::{Node, NodeOptions};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::banner::banner;
use crate::cli::Standalone;
use crate::compaction::Compactions;
use crate::config::{self, Config, Durability, TlsSection};
use crate::directory::Directory;
use crate::local::Local;
use crate::{exposition, follow, http, logging};

/// How often the metrics recorder tidies up.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How long the proxy may take to stop; it gives connections ten seconds to finish what is in flight.
const DRAIN: Duration = Duration::from_secs(12);

/// Runs until a signal or SHUTDOWN ends it.
pub(crate) fn run(flags: &Standalone) -> anyhow::Result<()> {
    let mut config = settle(flags)?;
    if flags.print_config {
        return crate::print(&config::render(&config));
    }
    config.settle().map_err(anyhow::Error::msg)?;
    logging::start(&config.log)?;
    let directory = Directory::take(&config.node.data, &config.node.cluster)?;
    let metrics = exposition::install().context("install the metrics recorder")?;
    let runtimes = Runtimes::start(&config)?;
    let outcome = runtimes.small.block_on(serve(&config, flags, &directory, metrics, &runtimes));
    runtimes.stop();
    // The lock is let go of last.
    drop(directory);
    outcome
}

/// Defaults, then the file, then flags.
fn settle(flags: &Standalone) -> anyhow::Result<Config> {
    let mut config = Config::defaults();
    if let Some(path) = &flags.config {
        config.read_file(path)?;
    }
    for flag in &flags.set {
        config.read_flag(flag)?;
    }
    let short = [("storage.durability", &flags.durability), ("log.level", &flags.log_level), ("log.format", &flags.log_format)];
    for (key, value) in short {
        if let Some(value) = value {
            config.read_flag(&format!("{key}={value}"))?;
        }
    }
    if let Some(data) = &flags.data {
        config.node.data.clone_from(data);
    }
    if !flags.bind.is_empty() {
        config.proxy.bind.clone_from(&flags.bind);
    }
    if let Some(port) = flags.port {
        config.proxy.port = port;
    }
    if let Some(port) = flags.http_port {
        config.http.port = port;
    }
    if let Some(path) = &flags.password_file {
        config.proxy.requirepass_file.clone_from(path);
        config.proxy.requirepass = config::Secret::new("");
    }
    Ok(config)
}

/// The runtimes of a process.
struct Runtimes {
    proxy: Runtime,
    raft: Runtime,
    small: Runtime,
}

impl Runtimes {
    fn start(config: &Config) -> anyhow::Result<Runtimes> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = |set: u32, by_cores: usize| if set == 0 { by_cores } else { set as usize };
        let build = |name: &str, threads: usize| {
            let builder = Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build();
            builder.with_context(|| format!("start the {name} runtime"))
        };
        Ok(Runtimes {
            proxy: build("proxy", threads(config.threads.proxy, cores))?,
            // A group's work is short; a quarter of the cores drives many groups.
            raft: build("raft", threads(config.threads.raft, (cores / 4).max(1)))?,
            small: build("small", 1)?,
        })
    }

    /// Waits a little for what still runs; blocking calls that never end must not keep the process.
    fn stop(self) {
        for runtime in [self.proxy, self.raft, self.small] {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Sockets that are bound, and where.
struct Ports {
    plain: Vec<TcpListener>,
    tls: Vec<TcpListener>,
    http: std::net::TcpListener,
}

impl Ports {
    fn bind(config: &Config) -> anyhow::Result<Ports> {
        let proxy = &config.proxy;
        let bind = |ip: &IpAddr, port, key: &str| {
            listen(SocketAddr::new(*ip, port), proxy.tcp_backlog).with_context(|| match port {
                0 => format!("bind {ip} ({key})"),
                port => format!("bind {ip} port {port} ({key})"),
            })
        };
        let http = bind(&config.http.bind, config.http.port, "http.port, --http-port")?.into_std()?;
        let mut ports = Ports { plain: Vec::new(), tls: Vec::new(), http };
        // With port 0, all addresses get the same port: that of the first.
        let (mut plain, mut tls) = (proxy.port, config.tls.port);
        for ip in &proxy.bind {
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
}

fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

fn addresses(listeners: &[TcpListener]) -> io::Result<Vec<SocketAddr>> {
    listeners.iter().map(TcpListener::local_addr).collect()
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> anyhow::Result<Signals> {
        let catch = |kind| signal(kind).context("catch signals");
        Ok(Signals { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn serve(
    config: &Config,
    flags: &Standalone,
    directory: &Directory,
    metrics: PrometheusHandle,
    runtimes: &Runtimes,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut signals = Signals::catch()?;
    let ports = Ports::bind(config)?;
    let tls = tls_settings(&config.tls)?;
    let (plain_at, tls_at, http_at) = (addresses(&ports.plain)?, addresses(&ports.tls)?, ports.http.local_addr()?);

    // Until the data is open there is a page that says so.
    let (is_open, http) = (CancellationToken::new(), ports.http.try_clone().and_then(TcpListener::from_std)?);
    tokio::spawn(axum::serve(http, http::opening()).with_graceful_shutdown(is_open.clone().cancelled_owned()).into_future());
    let opened = tokio::select! {
        opened = Opened::open(config, directory, runtimes) => opened?,
        name = signals.next() => anyhow::bail!("stopped by {name} while opening the data"),
    };
    let shutdown = CancellationToken::new();
    let local = Arc::new(Local {
        config: config.clone(),
        config_file: flags.config.clone(),
        identity: directory.identity().clone(),
        node: opened.node.clone(),
        meta: opened.meta.clone(),
        log: opened.log.clone(),
        shared: opened.shared.clone(),
        started,
        addresses: plain_at.iter().map(ToString::to_string).chain(tls_at.iter().map(|address| format!("{address} (TLS)"))).collect(),
        compactions: Compactions::default(),
        proxy: std::sync::OnceLock::new(),
        serving: false.into(),
    });
    let facts = facts(config, flags, directory.path(), &plain_at, &tls_at);
    let settings = config::proxy_settings(config);
    let proxy = Proxy::new(settings, facts, opened.node.clone(), opened.meta.clone(), local.clone(), shutdown.clone());
    local.proxy.set(Arc::downgrade(&proxy)).expect("set once, here");

    is_open.cancel();
    let (pages, stop_pages) = (http::pages(local.clone(), metrics.clone()), CancellationToken::new());
    let http = axum::serve(TcpListener::from_std(ports.http)?, pages).with_graceful_shutdown(stop_pages.clone().cancelled_owned());
    let http = tokio::spawn(http.into_future());
    let upkeep = tokio::spawn(keep_up(metrics));
    let following = runtimes.proxy.spawn(follow::forever(opened.meta.clone(), opened.node.clone()));
    let plain = ports.plain.into_iter().map(|listener| (listener, None));
    let listeners: Vec<_> = plain.chain(ports.tls.into_iter().map(|listener| (listener, tls.clone()))).collect();
    let serving = listeners.into_iter().map(|(listener, tls)| runtimes.proxy.spawn(proxy::serve(proxy.clone(), listener, tls)));
    let serving = futures::future::join_all(serving.collect::<Vec<_>>());
    local.serving.store(true, Ordering::Release);
    crate::print(&banner(config, directory.path(), &plain_at, &tls_at, http_at))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), opened_ms = started.elapsed().as_millis() as u64, "serving");

    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "stopping"),
        () = shutdown.cancelled() => tracing::info!("stopping"),
    }
    local.serving.store(false, Ordering::Release);
    shutdown.cancel();
    tokio::select! {
        drained = tokio::time::timeout(DRAIN, serving) => if drained.is_err() {
            tracing::warn!("connections did not finish in time; they are cut");
        },
        name = signals.next() => anyhow::bail!("cut short by a second {name}; what was acknowledged is in the log"),
    }
    following.abort();
    upkeep.abort();
    stop_pages.cancel();
    let closed = opened.close().await;
    // Nobody may hold up the stop by keeping an HTTP connection.
    let _ = tokio::time::timeout(Duration::from_secs(1), http).await;
    tracing::info!("stopped");
    closed
}

async fn keep_up(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

/// What holds the data, open.
struct Opened {
    log: Arc<Log>,
    shared: Shared,
    meta: Arc<Meta>,
    node: Arc<Node>,
}

impl Opened {
    async fn open(config: &Config, directory: &Directory, runtimes: &Runtimes) -> anyhow::Result<Opened> {
        let options = log_options(config, directory.path());
        let log = tokio::task::spawn_blocking(move || Log::open(options)).await?.context("open the Raft log")?;
        let shared = Shared::new(store_settings(config)).context("set up RocksDB")?;
        let raft_runtime = runtimes.raft.handle().clone();
        let options =
            MetaOptions { dir: directory.path().join("meta"), raft_runtime: raft_runtime.clone(), partitions: config.tables.partitions };
        let meta = Meta::open(options, &log, &shared).await.context("open the table catalogue")?;
        let tag = u64::from_str_radix(&directory.identity().cluster_id, 16).unwrap_or_default();
        let options = NodeOptions {
            dir: directory.path().join("tables"),
            raft_runtime,
            write_bytes_max: config.storage.max_write_size.0 as usize,
            answer_bytes_max: config.storage.max_answer_size.0 as usize,
            row_cache_bytes: config.storage.row_cache.0 as usize,
            cluster_tag: tag as u8,
        };
        let (node_log, node_shared, first) = (log.clone(), shared.clone(), meta.clone());
        // On the proxy's runtime: executors are to run beside the connections that they answer.
        let node = runtimes.proxy.spawn(async move {
            let node = Node::open(options, node_log, node_shared);
            let tables = first.watch().borrow().clone();
            follow::once(&first, &node, &tables).await;
            node
        });
        Ok(Opened { log, shared, meta, node: node.await? })
    }

    /// Stops and flushes everything, the log last.
    async fn close(self) -> anyhow::Result<()> {
        self.node.close().await;
        self.meta.close().await.context("close the table catalogue")?;
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close()).await?.context("close the Raft log")
    }
}

fn tls_settings(section: &TlsSection) -> anyhow::Result<Option<Arc<rustls::ServerConfig>>> {
    if section.port == 0 {
        return Ok(None);
    }
    let client_ca = Some(&section.client_ca_file).filter(|file| !file.as_os_str().is_empty()).cloned();
    let files = TlsFiles { cert: section.cert_file.clone(), key: section.key_file.clone(), client_ca };
    Ok(Some(proxy::tls::server_config(&files).context("set up TLS ([tls] in the configuration)")?))
}

fn log_options(config: &Config, data: &Path) -> LogOptions {
    let mut options = LogOptions::new(data.join("log"));
    options.durability = match config.storage.durability {
        Durability::Always => engine::log::Durability::Always,
        Durability::Interval => engine::log::Durability::Interval(config.storage.sync_interval.0),
        Durability::Os => engine::log::Durability::Os,
    };
    options.segment_bytes = config.raft_log.segment.0 as u32;
    options.tail_bytes_max = config.raft_log.tail_cache.0;
    options
}

fn store_settings(config: &Config) -> Settings {
    let storage = &config.storage;
    Settings {
        cache_bytes: storage.block_cache.0 as usize,
        memtable_bytes: storage.memtables.0 as usize,
        flush_threads: storage.flush_threads as i32,
        compaction_threads: storage.compaction_threads as i32,
        zstd_bottom: storage.compression == config::Compression::Zstd,
        sweep_seconds: storage.sweep_after.0.as_secs(),
        disk_reserve_bytes: storage.disk_reserve.0,
    }
}

fn facts(config: &Config, flags: &Standalone, data: &Path, plain: &[SocketAddr], tls: &[SocketAddr]) -> Facts {
    let port = |addresses: &[SocketAddr]| addresses.first().map_or(0, SocketAddr::port);
    let shown = |path: &Path| std::fs::canonicalize(path).unwrap_or(path.to_owned()).display().to_string();
    let bind = config.proxy.bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mode: "standalone",
        port: port(plain),
        tls_port: port(tls),
        config_file: flags.config.as_deref().map(shown).unwrap_or_default(),
        data_dir: shown(data),
        fixed: vec![("bind", bind), ("tcp-backlog", config.proxy.tcp_backlog.to_string())],
    }
}
