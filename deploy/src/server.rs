//! The life of a process, from the configuration to the last flush.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use cluster::meta_protocol::Roles;
use engine::time::SlewedClock;
use metrics_exporter_prometheus::PrometheusHandle;
use proxy::tls::Tls;
use proxy::{Proxy, ServerInfo};
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::banner::banner;
use crate::certificates::Certificates;
use crate::cli::{ClientFlags, ClusterFlags, CommonFlags};
use crate::compaction::Compactions;
use crate::components::{Components, StartContext, StartupPhase};
use crate::config::{self, Address, Config, Machine, TlsSection};
use crate::data_dir::{Claim, DataDir};
use crate::descriptors::Descriptors;
use crate::ports::{BoundAddresses, Ports};
use crate::process_info::ProcessInfo;
use crate::runtimes::{Runtimes, Signals};
use crate::{exposition, http, logging, member, standalone};

/// Interval of the metrics recorder's upkeep.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// Maximum time for the proxy to stop; connections get ten seconds of it to finish
/// commands in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(12);

/// Mode of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All of Bridle in one process.
    Standalone,
    /// A process of a cluster, with these roles.
    Member(Roles),
}

impl Mode {
    /// The roles of the process.
    pub(crate) fn roles(self) -> Roles {
        match self {
            Mode::Standalone => Roles { meta: true, storage: true, proxy: true },
            Mode::Member(roles) => roles,
        }
    }

    /// The process is part of a cluster.
    pub(crate) fn in_cluster(self) -> bool {
        self != Mode::Standalone
    }
}

/// Parsed flags of the command line.
pub(crate) struct CliFlags<'a> {
    pub(crate) common: &'a CommonFlags,
    pub(crate) clients: Option<&'a ClientFlags>,
    pub(crate) cluster: Option<&'a ClusterFlags>,
}

/// Runs until a signal or SHUTDOWN ends it.
pub(crate) fn run(mode: Mode, flags: &CliFlags<'_>) -> anyhow::Result<()> {
    let mut config = resolve(flags)?;
    if flags.common.print_config {
        return crate::print(&config::render(&config));
    }
    let lowered = config.resolve(Machine::detect(Path::new("/"))).map_err(anyhow::Error::msg)?;
    let (mode, kind) = match mode {
        Mode::Standalone => (mode, Claim::Standalone),
        Mode::Member(wanted) => {
            let roles = config.resolve_cluster(wanted).map_err(anyhow::Error::msg)?;
            (Mode::Member(roles), Claim::Member { meta_index: config.cluster.meta_index() })
        }
    };
    logging::start(&config.log)?;
    lowered.iter().for_each(|lowered| tracing::warn!("{lowered}"));
    let descriptors = Descriptors::raise_limit(mode.in_cluster())?;
    let data_dir = Arc::new(DataDir::take(&config.node.data, &config.cluster.name, kind)?);
    let metrics = exposition::install().context("install the metrics recorder")?;
    let dirty_page_decay = config.shares.memory.dirty_page_decay();
    engine::memory::set_decay_time(dirty_page_decay).context("set up the allocator")?;
    let runtimes = Runtimes::start(&config)?;
    let config_file = flags.common.config.clone();
    let process = RunningProcess {
        mode,
        config: &config,
        config_file,
        descriptors,
        data_dir: &data_dir,
        runtimes: &runtimes,
    };
    let outcome = runtimes.control.block_on(process.serve(metrics));
    runtimes.stop();
    // Releases the directory's lock, last.
    drop(data_dir);
    outcome
}

/// Defaults, then the file, then flags.
fn resolve(flags: &CliFlags<'_>) -> anyhow::Result<Config> {
    let (common, mut config) = (flags.common, Config::defaults());
    if let Some(path) = &common.config {
        config.read_file(path)?;
    }
    for flag in &common.set {
        config.read_flag(flag)?;
    }
    let short = [
        ("node.memory", &common.memory),
        ("storage.durability", &common.durability),
        ("log.level", &common.log_level),
        ("log.format", &common.log_format),
    ];
    for (key, value) in short {
        if let Some(value) = value {
            config.read_flag(&format!("{key}={value}"))?;
        }
    }
    if let Some(data) = &common.data {
        config.node.data.clone_from(data);
    }
    if let Some(port) = common.http_port {
        config.http.port = port;
    }
    if let Some(path) = &common.password_file {
        config.proxy.requirepass_file.clone_from(path);
        config.proxy.requirepass = config::Secret::new("");
    }
    if let Some(clients) = flags.clients {
        if !clients.bind.is_empty() {
            config.proxy.bind.clone_from(&clients.bind);
        }
        config.proxy.port = clients.port.unwrap_or(config.proxy.port);
    }
    if let Some(cluster) = flags.cluster {
        if let Some(metas) = &cluster.metas {
            let metas =
                metas.split(',').map(|meta| Address::new(meta.trim())).collect::<Result<_, _>>();
            config.cluster.metas = metas.map_err(|why| anyhow::anyhow!("--metas: {why}"))?;
        }
        if let Some(address) = &cluster.advertise {
            config.cluster.advertise =
                Some(Address::new(address).map_err(|why| anyhow::anyhow!("--advertise: {why}"))?);
        }
        config.cluster.listen = cluster.listen.unwrap_or(config.cluster.listen);
        if let Some(zone) = &cluster.zone {
            config.cluster.zone.clone_from(zone);
        }
        if let Some(path) = &cluster.secret_file {
            config.cluster.secret_file.clone_from(path);
            config.cluster.secret = config::Secret::new("");
        }
    }
    Ok(config)
}

/// A process that is starting or running.
struct RunningProcess<'a> {
    mode: Mode,
    config: &'a Config,
    config_file: Option<PathBuf>,
    descriptors: Descriptors,
    data_dir: &'a Arc<DataDir>,
    runtimes: &'a Runtimes,
}

impl RunningProcess<'_> {
    async fn serve(&self, metrics: PrometheusHandle) -> anyhow::Result<()> {
        let (config, data_dir, runtimes, started) =
            (self.config, self.data_dir, self.runtimes, Instant::now());
        let (mut signals, hangups) = (Signals::catch()?, Signals::hangups()?);
        let roles = self.mode.roles();
        let mut ports = Ports::bind(config, roles, self.mode.in_cluster())?;
        let tls = client_tls(&config.tls)?;
        let certificates = Arc::new(Certificates::new(tls.clone()));
        let bound = ports.bound()?;

        // Until everything is open, the HTTP port reports the phase of the start.
        let phase = StartupPhase::default();
        phase.set("opening the data");
        let (http_server, stop_pages) = (http::HttpServer::new(&phase), CancellationToken::new());
        let http = tokio::spawn(http_server.clone().serve(
            TcpListener::from_std(ports.http)?,
            http::TIMEOUTS,
            stop_pages.clone(),
        ));
        let setup = StartContext {
            config,
            roles,
            data_dir,
            runtimes,
            bound: &bound,
            clock: SlewedClock::system(),
            phase: &phase,
        };
        let opening = async {
            match ports.cluster.take() {
                Some(listener) => member::open(&setup, listener).await,
                None => standalone::open(&setup).await,
            }
        };
        let components = tokio::select! {
            components = opening => components?,
            name = signals.next() => anyhow::bail!("stopped by {name} while {}", phase.text()),
        };
        let shutdown = CancellationToken::new();
        if let Some(membership) = &components.membership {
            certificates.of_cluster(&membership.view.net);
        }
        let process = Arc::new(self.process(&components, &bound, started, certificates));
        let mut settings = config::proxy_settings(config);
        if roles.proxy {
            self.descriptors.limit_clients(&mut settings);
        }
        let facts = self.facts(&bound);
        let proxy = Proxy::new(
            settings,
            facts,
            components.rows.clone(),
            components.catalogue.clone(),
            process.clone(),
            shutdown.clone(),
        );
        process.proxy.set(Arc::downgrade(&proxy)).expect("a process opens one proxy");
        if let Some(membership) = &components.membership {
            membership.publish(&process);
        }

        http_server.open(http::pages(process.clone(), metrics.clone()));
        // Before the first client is served.
        process.serving.store(true, Ordering::Release);
        let upkeep = tokio::spawn(run_metrics_upkeep(metrics));
        let renewing = tokio::spawn(reload_on_hangup(process.clone(), hangups));
        let plain = ports.plain.into_iter().map(|listener| (listener, None));
        let listeners: Vec<_> =
            plain.chain(ports.tls.into_iter().map(|listener| (listener, tls.clone()))).collect();
        let serving = listeners.into_iter().map(|(listener, tls)| {
            runtimes.proxy.spawn(proxy::serve(proxy.clone(), listener, tls))
        });
        let mut serving: Vec<_> = serving.collect();
        let (unix, unix_path) = ports.unix.unzip();
        if let (Some(listener), Some(path)) = (unix, &unix_path) {
            let (proxy, path) = (proxy.clone(), path.text());
            serving.push(runtimes.proxy.spawn(proxy::serve_unix(proxy, listener, path)));
        }
        let serving = futures::future::join_all(serving);
        crate::print(&banner(self.mode, config, data_dir.path(), &bound))?;
        if let Some(why) = config.unguarded() {
            tracing::warn!("{why}");
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            opened_ms = started.elapsed().as_millis() as u64,
            "serving"
        );

        tokio::select! {
            name = signals.next() => tracing::info!(signal = name, "stopping"),
            () = shutdown.cancelled() => tracing::info!("stopping"),
        }
        process.serving.store(false, Ordering::Release);
        let stopping = async {
            components.transfer_leaderships(config.cluster.leader_transfer_timeout.0).await;
            shutdown.cancel();
            if tokio::time::timeout(DRAIN_TIMEOUT, serving).await.is_err() {
                tracing::warn!("connections did not finish in time; closing them");
            }
        };
        tokio::select! {
            () = stopping => {}
            name = signals.next() => {
                anyhow::bail!("stop aborted by a second {name}; acknowledged writes are in the log")
            }
        }
        drop(unix_path);
        upkeep.abort();
        renewing.abort();
        stop_pages.cancel();
        let closed = components.close().await;
        // An open HTTP connection must not delay the stop.
        let _ = tokio::time::timeout(Duration::from_secs(1), http).await;
        tracing::info!("stopped");
        closed
    }

    fn process(
        &self,
        components: &Components,
        bound: &BoundAddresses,
        started: Instant,
        certificates: Arc<Certificates>,
    ) -> ProcessInfo {
        let addresses = bound.plain.iter().map(ToString::to_string);
        ProcessInfo {
            mode: self.mode,
            config: self.config.clone(),
            config_file: self.config_file.clone(),
            data_dir: self.data_dir.clone(),
            node: components.node.clone(),
            meta: components.meta.clone(),
            stores: components.stores.clone(),
            catalogue: components.catalogue.clone(),
            cluster: components.membership.as_ref().map(|membership| membership.view.clone()),
            started,
            addresses: addresses
                .chain(bound.tls.iter().map(|address| format!("{address} (TLS)")))
                .collect(),
            compactions: Compactions::default(),
            certificates,
            proxy: std::sync::OnceLock::new(),
            serving: false.into(),
        }
    }

    fn facts(&self, bound: &BoundAddresses) -> ServerInfo {
        let port = |addresses: &[std::net::SocketAddr]| {
            addresses.first().map_or(0, std::net::SocketAddr::port)
        };
        let shown = |path: &Path| {
            std::fs::canonicalize(path).unwrap_or(path.to_owned()).display().to_string()
        };
        let bind =
            self.config.proxy.bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: if self.mode.in_cluster() { "cluster" } else { "standalone" },
            port: port(&bound.plain),
            tls_port: port(&bound.tls),
            config_file: self.config_file.as_deref().map(shown).unwrap_or_default(),
            data_dir: shown(self.data_dir.path()),
            fixed: vec![
                ("bind", bind),
                ("tcp-backlog", self.config.proxy.tcp_backlog.to_string()),
                ("unixsocket", self.config.proxy.unixsocket.display().to_string()),
                (
                    "unixsocketperm",
                    format!("{:o}", self.config.proxy.unixsocketperm.0.unwrap_or(0)),
                ),
            ],
        }
    }
}

async fn run_metrics_upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

fn client_tls(section: &TlsSection) -> anyhow::Result<Option<Arc<Tls>>> {
    if section.port == 0 {
        return Ok(None);
    }
    let credentials = proxy::tls::read(&config::tls_files(section))
        .context("set up TLS ([tls] in the configuration)")?;
    Ok(Some(Tls::new(credentials)))
}

/// Reloads certificates on SIGHUP, until the process stops.
async fn reload_on_hangup(process: Arc<ProcessInfo>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        let (for_clients, of_cluster) = match process.proxy() {
            Some(proxy) => {
                let settings = proxy.settings.load();
                (settings.tls.clone(), settings.cluster_tls.clone())
            }
            None => (
                config::tls_files(&process.config.tls),
                config::cluster_tls_files(&process.config.cluster),
            ),
        };
        if let Err(error) = process.certificates.renew(Some(&for_clients), Some(&of_cluster)) {
            tracing::error!(
                %error,
                "SIGHUP: cannot reload certificates, the previous ones stay in use"
            );
        }
    }
}
