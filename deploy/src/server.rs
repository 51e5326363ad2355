//! A process from the configuration to the last flush, whatever its roles.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use cluster::news::Roles;
use engine::time::SlewedClock;
use metrics_exporter_prometheus::PrometheusHandle;
use proxy::tls::Tls;
use proxy::{Facts, Proxy};
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::banner::banner;
use crate::certificates::Certificates;
use crate::cli::{ClientFlags, ClusterFlags, CommonFlags};
use crate::compaction::Compactions;
use crate::config::{self, Address, Config, Machine, TlsSection};
use crate::descriptors::Descriptors;
use crate::directory::{Directory, Kind};
use crate::local::Local;
use crate::opened::{Opened, Setup, Stage};
use crate::ports::{Places, Ports};
use crate::runtimes::{Runtimes, Signals};
use crate::{exposition, http, logging, member, standalone};

/// How often the metrics recorder tidies up.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How long the proxy may take to stop; it gives connections ten seconds to finish what
/// is in flight.
const DRAIN: Duration = Duration::from_secs(12);

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of Bridle, by itself.
    Standalone,
    /// One of a cluster's processes.
    Member(Roles),
}

impl Shape {
    /// What it does.
    pub(crate) fn roles(self) -> Roles {
        match self {
            Shape::Standalone => Roles { meta: true, storage: true, proxy: true },
            Shape::Member(roles) => roles,
        }
    }

    /// Whether it has others beside it.
    pub(crate) fn in_cluster(self) -> bool {
        self != Shape::Standalone
    }
}

/// What the command line says.
pub(crate) struct Flags<'a> {
    pub(crate) common: &'a CommonFlags,
    pub(crate) clients: Option<&'a ClientFlags>,
    pub(crate) cluster: Option<&'a ClusterFlags>,
}

/// Runs until a signal or SHUTDOWN ends it.
pub(crate) fn run(shape: Shape, flags: &Flags<'_>) -> anyhow::Result<()> {
    let mut config = settle(flags)?;
    if flags.common.print_config {
        return crate::print(&config::render(&config));
    }
    let lowered = config.settle(Machine::look(Path::new("/"))).map_err(anyhow::Error::msg)?;
    let (shape, kind) = match shape {
        Shape::Standalone => (shape, Kind::Alone),
        Shape::Member(wanted) => {
            let roles = config.settle_cluster(wanted).map_err(anyhow::Error::msg)?;
            (Shape::Member(roles), Kind::Member { seat: config.cluster.seat() })
        }
    };
    logging::start(&config.log)?;
    lowered.iter().for_each(|lowered| tracing::warn!("{lowered}"));
    let descriptors = Descriptors::claim(shape.in_cluster())?;
    let directory = Arc::new(Directory::take(&config.node.data, &config.cluster.name, kind)?);
    let metrics = exposition::install().context("install the metrics recorder")?;
    let freed_stays_for = config.shares.memory.freed_stays_for();
    engine::memory::give_back_after(freed_stays_for)
        .map_err(anyhow::Error::msg)
        .context("set up the allocator")?;
    let runtimes = Runtimes::start(&config)?;
    let config_file = flags.common.config.clone();
    let process = Process {
        shape,
        config: &config,
        config_file,
        descriptors,
        directory: &directory,
        runtimes: &runtimes,
    };
    let outcome = runtimes.small.block_on(process.serve(metrics));
    runtimes.stop();
    // The lock is let go of last.
    drop(directory);
    outcome
}

/// Defaults, then the file, then flags.
fn settle(flags: &Flags<'_>) -> anyhow::Result<Config> {
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

/// A process that runs.
struct Process<'a> {
    shape: Shape,
    config: &'a Config,
    config_file: Option<PathBuf>,
    descriptors: Descriptors,
    directory: &'a Arc<Directory>,
    runtimes: &'a Runtimes,
}

impl Process<'_> {
    async fn serve(&self, metrics: PrometheusHandle) -> anyhow::Result<()> {
        let (config, directory, runtimes, started) =
            (self.config, self.directory, self.runtimes, Instant::now());
        let (mut signals, hangups) = (Signals::catch()?, Signals::hangups()?);
        let roles = self.shape.roles();
        let mut ports = Ports::bind(config, roles, self.shape.in_cluster())?;
        let tls = tls_of(&config.tls)?;
        let certificates = Arc::new(Certificates::new(tls.clone()));
        let places = ports.places()?;

        // Until all is open there is a page that says so.
        let stage = Stage::default();
        stage.set("opening the data");
        let (door, stop_pages) = (http::Door::new(&stage), CancellationToken::new());
        let http = tokio::spawn(door.clone().serve(
            TcpListener::from_std(ports.http)?,
            http::PATIENCE,
            stop_pages.clone(),
        ));
        let setup = Setup {
            config,
            roles,
            directory,
            runtimes,
            places: &places,
            clock: SlewedClock::system(),
            stage: &stage,
        };
        let opening = async {
            match ports.cluster.take() {
                Some(listener) => member::open(&setup, listener).await,
                None => standalone::open(&setup).await,
            }
        };
        let opened = tokio::select! {
            opened = opening => opened?,
            name = signals.next() => anyhow::bail!("stopped by {name} while {}", stage.text()),
        };
        let shutdown = CancellationToken::new();
        if let Some(member) = &opened.member {
            certificates.of_cluster(&member.view.net);
        }
        let local = Arc::new(self.local(&opened, &places, started, certificates));
        let mut settings = config::proxy_settings(config);
        if roles.proxy {
            self.descriptors.fit(&mut settings);
        }
        let facts = self.facts(&places);
        let proxy = Proxy::new(
            settings,
            facts,
            opened.rows.clone(),
            opened.catalogue.clone(),
            local.clone(),
            shutdown.clone(),
        );
        local.proxy.set(Arc::downgrade(&proxy)).expect("set once, here");
        if let Some(member) = &opened.member {
            member.introduce(&local);
        }

        door.open(http::pages(local.clone(), metrics.clone()));
        // Before the first client can be told anything else.
        local.serving.store(true, Ordering::Release);
        let upkeep = tokio::spawn(keep_up(metrics));
        let renewing = tokio::spawn(renew_by_signal(local.clone(), hangups));
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
        crate::print(&banner(self.shape, config, directory.path(), &places))?;
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
        local.serving.store(false, Ordering::Release);
        let stopping = async {
            opened.hand_over(config.cluster.leader_transfer_timeout.0).await;
            shutdown.cancel();
            if tokio::time::timeout(DRAIN, serving).await.is_err() {
                tracing::warn!("connections did not finish in time; they are cut");
            }
        };
        tokio::select! {
            () = stopping => {}
            name = signals.next() => anyhow::bail!("cut short by a second {name}; what was acknowledged is in the log"),
        }
        drop(unix_path);
        upkeep.abort();
        renewing.abort();
        stop_pages.cancel();
        let closed = opened.close().await;
        // Nobody may hold up the stop by keeping an HTTP connection.
        let _ = tokio::time::timeout(Duration::from_secs(1), http).await;
        tracing::info!("stopped");
        closed
    }

    fn local(
        &self,
        opened: &Opened,
        places: &Places,
        started: Instant,
        certificates: Arc<Certificates>,
    ) -> Local {
        let addresses = places.plain.iter().map(ToString::to_string);
        Local {
            shape: self.shape,
            config: self.config.clone(),
            config_file: self.config_file.clone(),
            directory: self.directory.clone(),
            node: opened.node.clone(),
            meta: opened.meta.clone(),
            stores: opened.stores.clone(),
            catalogue: opened.catalogue.clone(),
            cluster: opened.member.as_ref().map(|member| member.view.clone()),
            started,
            addresses: addresses
                .chain(places.tls.iter().map(|address| format!("{address} (TLS)")))
                .collect(),
            compactions: Compactions::default(),
            certificates,
            proxy: std::sync::OnceLock::new(),
            serving: false.into(),
        }
    }

    fn facts(&self, places: &Places) -> Facts {
        let port = |addresses: &[std::net::SocketAddr]| {
            addresses.first().map_or(0, std::net::SocketAddr::port)
        };
        let shown = |path: &Path| {
            std::fs::canonicalize(path).unwrap_or(path.to_owned()).display().to_string()
        };
        let bind =
            self.config.proxy.bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: if self.shape.in_cluster() { "cluster" } else { "standalone" },
            port: port(&places.plain),
            tls_port: port(&places.tls),
            config_file: self.config_file.as_deref().map(shown).unwrap_or_default(),
            data_dir: shown(self.directory.path()),
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

async fn keep_up(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

fn tls_of(section: &TlsSection) -> anyhow::Result<Option<Arc<Tls>>> {
    if section.port == 0 {
        return Ok(None);
    }
    let credentials = proxy::tls::read(&config::tls_files(section))
        .context("set up TLS ([tls] in the configuration)")?;
    Ok(Some(Tls::new(credentials)))
}

/// Reads certificates anew by SIGHUP, until the process stops.
async fn renew_by_signal(local: Arc<Local>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        let (for_clients, of_cluster) = match local.proxy() {
            Some(proxy) => {
                let settings = proxy.settings.load();
                (settings.tls.clone(), settings.cluster_tls.clone())
            }
            None => (
                config::tls_files(&local.config.tls),
                config::cluster_tls_files(&local.config.cluster),
            ),
        };
        if let Err(why) = local.certificates.renew(Some(&for_clients), Some(&of_cluster)) {
            tracing::error!(
                why,
                "SIGHUP: certificates can't be used, those from before are used on"
            );
        }
    }
}
