//! The admin API on a process that is not a meta: authorised requests are forwarded to
//! the meta leader.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use cluster::meta_protocol::{MetaRequest, MetaResponse};
use meta::admin::HostProcess as _;

use crate::process_info::ProcessInfo;

/// Maximum size of a request's body, bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Everything under `/v1`.
pub(crate) fn router(process: Arc<ProcessInfo>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/{*path}", any(forward))
        .with_state(process)
}

async fn status(State(process): State<Arc<ProcessInfo>>, request: Request) -> Response {
    match meta::admin::authorize(&request, &*process) {
        Ok(()) => Json(process.status()).into_response(),
        Err(refused) => refused,
    }
}

async fn forward(State(process): State<Arc<ProcessInfo>>, request: Request) -> Response {
    if let Err(refused) = meta::admin::authorize(&request, &*process) {
        return refused;
    }
    let failed = |status: StatusCode, why: String| {
        (status, Json(serde_json::json!({ "error": why }))).into_response()
    };
    let Some(cluster) = &process.cluster else {
        return failed(StatusCode::NOT_FOUND, "this process has no meta".to_owned());
    };
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => return failed(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    match cluster
        .catalogue
        .ask(&MetaRequest::Admin { method: parts.method.to_string(), path, body })
        .await
    {
        Ok(MetaResponse::Admin { status, body }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Ok(MetaResponse::NotNow(why)) => failed(StatusCode::SERVICE_UNAVAILABLE, why),
        Err(error) => failed(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        Ok(MetaResponse::Refused(why)) => failed(StatusCode::BAD_REQUEST, why),
        Ok(MetaResponse::Unknown(why)) => failed(StatusCode::INTERNAL_SERVER_ERROR, why),
        Ok(MetaResponse::Fault(fault)) => {
            failed(StatusCode::INTERNAL_SERVER_ERROR, format!("meta storage fault: {fault}"))
        }
        Ok(
            MetaResponse::Table(_)
            | MetaResponse::Found(_)
            | MetaResponse::Tables(_)
            | MetaResponse::MetaIndex(_)
            | MetaResponse::NewTable { .. }
            | MetaResponse::NotLeading(_),
        ) => failed(StatusCode::BAD_GATEWAY, "unexpected response type from meta".to_owned()),
    }
}
