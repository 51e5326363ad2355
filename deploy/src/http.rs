//! The pages of the HTTP port: metrics, health, and the admin API.
//!
//! | page            | answer |
//! |-----------------|--------|
//! | `/metrics`      | Prometheus's text format ([`crate::exposition`] lists the names) |
//! | `/health/live`  | 200 as long as the process can answer at all |
//! | `/health/ready` | 200 when the process does what it is there for and every partition is sound; 503 with the reasons otherwise |
//! | `/v1/...`       | [`meta::admin`], here or by the meta that leads ([`relay`]) |

use std::sync::{Arc, OnceLock};

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tower::util::ServiceExt;

use crate::local::Local;
use crate::opened::Stage;
use crate::relay;

/// What the HTTP port shows: while the process is being opened that, and then all pages.
#[derive(Clone, Default)]
pub(crate) struct Door {
    stage: Stage,
    pages: Arc<OnceLock<Router>>,
}

impl Door {
    pub(crate) fn new(stage: &Stage) -> Door {
        Door { stage: stage.clone(), pages: Arc::default() }
    }

    /// The process is open. Once.
    pub(crate) fn open(&self, pages: Router) {
        self.pages.get_or_init(|| pages);
    }

    /// To be served from the first moment.
    pub(crate) fn router(&self) -> Router {
        let door = self.clone();
        Router::new().fallback(move |request: Request| async move {
            match door.pages.get() {
                Some(pages) => match pages.clone().oneshot(request).await {
                    Ok(page) => page,
                    Err(never) => match never {},
                },
                None => door.opening(request.uri().path()),
            }
        })
    }

    /// Live, but not ready.
    fn opening(&self, path: &str) -> Response {
        let why = format!("not serving yet: {}", self.stage.text());
        match path {
            "/health/live" => "ok\n".into_response(),
            path if path.starts_with("/v1/") => {
                (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": why }))).into_response()
            }
            _ => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        }
    }
}

/// All pages of a process that is open.
pub(crate) fn pages(local: Arc<Local>, metrics: metrics_exporter_prometheus::PrometheusHandle) -> Router {
    let (ready, scraped) = (local.clone(), local.clone());
    let admin = match &local.meta {
        Some(meta) => meta::admin::router(meta.clone(), local.clone()),
        None => relay::router(local.clone()),
    };
    Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(move || async move { health(&ready) }))
        .route("/metrics", get(move || async move { exposition(&scraped, &metrics) }))
        .merge(admin)
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is /metrics, /health/live, /health/ready and /v1/...\n") })
}

fn health(local: &Local) -> (StatusCode, String) {
    let faults = local.faults();
    if !local.is_serving() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not serving: starting or stopping\n".to_owned());
    }
    match faults.is_empty() {
        true => (StatusCode::OK, "ok\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, faults.join("\n") + "\n"),
    }
}

type Page = ([(header::HeaderName, &'static str); 1], String);

fn exposition(local: &Local, metrics: &metrics_exporter_prometheus::PrometheusHandle) -> Page {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], crate::exposition::page(local, metrics))
}
