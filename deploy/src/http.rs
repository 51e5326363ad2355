//! The pages of the HTTP port: metrics, health, and the admin API.
//!
//! | page            | answer |
//! |-----------------|--------|
//! | `/metrics`      | Prometheus's text format ([`crate::exposition`] lists the names) |
//! | `/health/live`  | 200 as long as the process can answer at all |
//! | `/health/ready` | 200 when the process does what it is there for and every partition is sound; 503 with the reasons otherwise |
//! | `/v1/...`       | [`meta::admin`], here or by the meta that leads ([`relay`]) |

use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::routing::{any, get};
use axum::{Json, Router};

use crate::local::Local;
use crate::opened::Stage;
use crate::relay;

/// Pages that are there from the first moment: live, but not ready.
pub(crate) fn opening(stage: &Stage) -> Router {
    let (for_people, for_programs) = (stage.clone(), stage.clone());
    let opening = move || async move { (StatusCode::SERVICE_UNAVAILABLE, format!("not serving: {}\n", for_people.text())) };
    let refusal = move || async move {
        let why = format!("not serving yet: {}", for_programs.text());
        (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": why })))
    };
    Router::new().route("/health/live", get(|| async { "ok\n" })).route("/v1/{*any}", any(refusal)).fallback(opening)
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
