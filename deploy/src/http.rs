//! The pages of the HTTP port: metrics, health, and the admin API.
//!
//! | page            | answer |
//! |-----------------|--------|
//! | `/metrics`      | Prometheus's text format ([`crate::exposition`] lists the names) |
//! | `/health/live`  | 200 while the process answers at all |
//! | `/health/ready` | 200 and a list of minor problems, or 503 and the reasons (below) |
//! | `/v1/...`       | [`meta::admin`], here or forwarded to the meta leader ([`admin_proxy`]) |
//!
//! A process is ready when it serves its roles, all of its replicas are healthy, and the
//! leader of some partition is reached ([`crate::reachability`]).
//!
//! # Invariants
//! - Clients of the port hold few descriptors for a limited time, and can't lock others
//!   out ([`connections`]; `idle_connections_lock_nobody_out`).
//! - No page waits longer than a second for a disk
//!   ([`stale_cache`](crate::stale_cache);
//!   `a_page_does_not_wait_for_a_stalled_disk`).
//! - DNS rebinding: a web page whose host name is made to resolve to this machine reads
//!   nothing (`pages_of_other_sites_are_refused`).

mod connections;

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Extension;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::ServiceExt;

use crate::admin_proxy;
use crate::components::StartupPhase;
use crate::process_info::ProcessInfo;
use crate::stale_cache::StaleCache;

pub(crate) use connections::CONNECTIONS_MAX;
use connections::{HttpConnection, HttpConnections};

/// Pause after a failed accept (no free file descriptor, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Health older than this is reported with its age.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// Timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionTimeouts {
    /// For the head of a request, from the last response on.
    head: Duration,
    /// For the whole connection. The request at that time is its last, and has the same
    /// time again before the connection is closed.
    all: Duration,
}

/// Clients send a head immediately, and each scrape opens a connection; the total is the
/// longest time that the admin API takes for a request.
pub(crate) const TIMEOUTS: ConnectionTimeouts =
    ConnectionTimeouts { head: Duration::from_secs(2), all: Duration::from_secs(60) };

/// The server of the HTTP port: until the process is open it serves the phase of the
/// start, and then all pages.
#[derive(Clone, Default)]
pub(crate) struct HttpServer {
    phase: StartupPhase,
    pages: Arc<OnceLock<Router>>,
}

impl HttpServer {
    pub(crate) fn new(phase: &StartupPhase) -> HttpServer {
        HttpServer { phase: phase.clone(), pages: Arc::default() }
    }

    /// The process is open. Once.
    pub(crate) fn open(&self, pages: Router) {
        self.pages.get_or_init(|| pages);
    }

    /// Serves until `stop`, and then until all requests in flight are answered.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        timeouts: ConnectionTimeouts,
        stop: CancellationToken,
    ) {
        let (connections, tasks) = (Arc::new(HttpConnections::default()), TaskTracker::new());
        loop {
            match stop.run_until_cancelled(listener.accept()).await {
                None => break,
                Some(Ok((stream, peer))) => {
                    // No slot is free, and none of the connections is idle.
                    let Some(connection) = connections.admit(peer.ip()) else { continue };
                    let page = self
                        .router()
                        .layer(middleware::from_fn_with_state(connection.clone(), track_request))
                        .layer(Extension(ConnectInfo(peer)));
                    let (connections, stop) = (connections.clone(), stop.clone());
                    tasks.spawn(async move {
                        tokio::select! {
                            () = serve_connection(stream, page, timeouts, stop) => {}
                            () = connection.evicted.cancelled() => {}
                        }
                        connections.remove(&connection);
                    });
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "accept a connection to the HTTP port");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }

    fn router(&self) -> Router {
        let server = self.clone();
        Router::new().fallback(move |request: Request| async move {
            match server.pages.get() {
                Some(pages) => match pages.clone().oneshot(request).await {
                    Ok(page) => page,
                    Err(never) => match never {},
                },
                None => server.opening(request.uri().path()),
            }
        })
    }

    /// Live, but not ready.
    fn opening(&self, path: &str) -> Response {
        let why = format!("not serving yet: {}", self.phase.text());
        match path {
            "/health/live" => "ok\n".into_response(),
            path if path.starts_with("/v1/") => {
                (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": why })))
                    .into_response()
            }
            _ => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        }
    }
}

/// Handles one request. Its connection is not idle meanwhile.
async fn track_request(
    State(connection): State<Arc<HttpConnection>>,
    request: Request,
    next: Next,
) -> Response {
    if connection.health_only && !is_health(request.uri().path()) {
        let why = "too many connections have requests in flight: only /health is served\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::CONNECTION, "close")], why)
            .into_response();
    }
    connection.begin_request();
    let answer = next.run(request).await;
    connection.end_request();
    answer
}

fn is_health(path: &str) -> bool {
    path.starts_with("/health/")
}

/// Rejects requests of other sites' web pages. By DNS rebinding, a browser on this
/// machine can be made to resolve a name of such a site to this machine; its reads then
/// carry no `Origin`. Health pages reveal nothing, and probes send any name, so they are
/// exempt.
async fn reject_other_sites(
    State(process): State<Arc<ProcessInfo>>,
    request: Request,
    next: Next,
) -> Response {
    let from = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map(|ConnectInfo(from)| from.ip().to_canonical());
    let path = request.uri().path();
    let is_guarded = path.starts_with("/v1/") && process.wants_password();
    let is_near = from.is_none_or(|from| from.is_loopback());
    if !is_health(path)
        && is_cross_site(
            request.headers(),
            (is_near || path.starts_with("/v1/")) && !is_guarded,
            &process.allowed_hosts(),
        )
    {
        let why = "requests from web pages of other sites are refused (http.allowed_hosts lists \
                   the host names that this port accepts)";
        return (StatusCode::FORBIDDEN, Json(serde_json::json!({ "error": why }))).into_response();
    }
    next.run(request).await
}

fn is_cross_site(headers: &HeaderMap, checks_host: bool, names: &[String]) -> bool {
    if headers
        .get("sec-fetch-site")
        .is_some_and(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"))
    {
        return true;
    }
    let Some(host) = headers.get(header::HOST).filter(|_| checks_host) else { return false };
    !host.to_str().is_ok_and(|host| is_allowed_host(host, names))
}

/// A `Host` is accepted when it is an address, `localhost` or one of these names, with or
/// without a port.
fn is_allowed_host(host: &str, names: &[String]) -> bool {
    let bare = match host.rsplit_once(':') {
        Some((bare, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!bare.contains(':') || bare.ends_with(']')) =>
        {
            bare
        }
        _ => host,
    };
    let address = bare.trim_start_matches('[').trim_end_matches(']');
    let bare = bare.trim_end_matches('.');
    address.parse::<IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || names.iter().any(|name| bare.eq_ignore_ascii_case(name))
}

/// Serves the requests of one connection.
async fn serve_connection(
    stream: TcpStream,
    page: Router,
    timeouts: ConnectionTimeouts,
    stop: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timeouts.head);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(page)));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = tokio::time::timeout(timeouts.all, stop.cancelled()) => {
            connection.as_mut().graceful_shutdown()
        }
    }
    // The outcome does not matter: the connection is closed in either case.
    let _ = tokio::time::timeout(timeouts.all, connection).await;
}

/// The pages of an open process.
pub(crate) fn pages(
    process: Arc<ProcessInfo>,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
) -> Router {
    let (ready, scraped) = (process.clone(), process.clone());
    let (health_cache, metrics_cache) = (StaleCache::new(), StaleCache::new());
    let admin = match &process.meta {
        Some(meta) => meta::admin::router(meta.clone(), process.clone()),
        None => admin_proxy::router(process.clone()),
    };
    Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(move || async move { health(&health_cache, ready).await }))
        .route(
            "/metrics",
            get(move || async move { metrics_page(&metrics_cache, scraped, &metrics).await }),
        )
        .merge(admin)
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "the pages are /metrics, /health/live, /health/ready and /v1/...\n",
            )
        })
        .layer(middleware::from_fn_with_state(process, reject_other_sites))
}

/// The health of the process, as far as it is known without waiting for a disk.
async fn health(
    health_cache: &Arc<StaleCache<(StatusCode, String)>>,
    process: Arc<ProcessInfo>,
) -> (StatusCode, String) {
    // That it does not serve is known without a disk.
    if !process.is_serving() {
        return health_now(&process);
    }
    match health_cache.get(move || health_now(&process)).await {
        Some((age, (status, said))) if age >= STALE_AFTER => {
            let stale = format!("as of {} s ago: the check waits for a disk\n", age.as_secs());
            (status, said + &stale)
        }
        Some((_, known)) => known,
        None => {
            (StatusCode::SERVICE_UNAVAILABLE, "unknown: the check waits for a disk\n".to_owned())
        }
    }
}

fn health_now(process: &ProcessInfo) -> (StatusCode, String) {
    let (unready, notes) = (process.unready(), process.notes());
    let (status, first) = match unready.is_empty() {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, ""),
    };
    let lines = [first]
        .into_iter()
        .filter(|first| !first.is_empty())
        .chain(unready.iter().chain(&notes).map(String::as_str));
    (status, lines.map(|line| format!("{line}\n")).collect())
}

type PageReply = ([(header::HeaderName, &'static str); 1], String);

async fn metrics_page(
    metrics_cache: &Arc<StaleCache<()>>,
    process: Arc<ProcessInfo>,
    metrics: &metrics_exporter_prometheus::PrometheusHandle,
) -> PageReply {
    let gathered = process.clone();
    let age =
        metrics_cache.get(move || crate::exposition::gather(&gathered)).await.map(|(age, ())| age);
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        crate::exposition::page(&process, age, metrics),
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: ConnectionTimeouts =
        ConnectionTimeouts { head: Duration::from_millis(200), all: Duration::from_millis(500) };
    const LONG: Duration = Duration::from_secs(10);

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn idle_connections_lock_nobody_out() {
        let (server, stop) = (HttpServer::new(&StartupPhase::default()), CancellationToken::new());
        // Larger than the buffers of a socket.
        let large = Bytes::from(vec![b'x'; 64 << 20]);
        server.open(Router::new().fallback(move |request: Request| {
            let page = if request.uri().path() == "/large" {
                large.clone()
            } else {
                Bytes::from_static(b"ok\n")
            };
            std::future::ready(page)
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(server.serve(listener, SHORT, stop.clone()));
        let said: [&[u8]; 3] =
            [b"", b"GET / HTTP/1.1\r\nhost:", b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n"];
        for said in said {
            let mut idle = Vec::new();
            for _ in 0..4 * CONNECTIONS_MAX {
                let mut stream = TcpStream::connect(address).await.unwrap();
                // It may have been evicted already.
                let _ = stream.write_all(said).await;
                idle.push(stream);
            }
            for _ in 0..3 {
                assert!(ask(address).await.ends_with("ok\n"), "a new request is served");
            }
            // None of them stays, even without further connections.
            let mut last = idle.pop().unwrap();
            let left = tokio::time::timeout(LONG, async {
                while last.read(&mut [0; 1 << 16]).await.is_ok_and(|read| read > 0) {}
            })
            .await;
            assert!(left.is_ok(), "an idle connection is closed");
        }
        // An idle connection does not delay the stop.
        let _idle = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        tokio::time::timeout(LONG, serving).await.unwrap().unwrap();
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let names = ["node1".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:9121",
            "[::1]:9121",
            "10.0.0.7:9121",
            "localhost",
            "LOCALHOST:1",
            "localhost.:1",
            "node1:9121",
        ] {
            assert!(is_allowed_host(host, &names), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9121",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "node10",
            "",
            ":9121",
            "x:y",
        ] {
            assert!(!is_allowed_host(host, &names), "{host}");
        }
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect()
        };
        assert!(is_cross_site(&headers(&[("host", "evil.example")]), true, &names));
        assert!(
            !is_cross_site(&headers(&[("host", "evil.example")]), false, &names),
            "a password guards it"
        );
        assert!(!is_cross_site(&headers(&[]), true, &names), "browsers send Sec-Fetch-Site");
        for (site, is_other) in [("cross-site", true), ("same-origin", false), ("none", false)] {
            assert_eq!(
                is_cross_site(
                    &headers(&[("host", "localhost"), ("sec-fetch-site", site)]),
                    true,
                    &names
                ),
                is_other,
                "{site}"
            );
        }
    }
}
