//! The HTTP client of `bridle admin`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::Admin;
use crate::config::Secret;

/// How long an answer may take; opening many partitions takes a while.
const TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP's word for "done, and nothing to say".
const NO_CONTENT: u16 = 204;

/// A server that is asked.
pub(super) struct Server {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
    pub(super) json: bool,
}

impl Server {
    pub(super) fn new(admin: &Admin) -> anyhow::Result<Server> {
        let password = match &admin.password_file {
            Some(path) => Some(Secret::from_file(Path::new(path)).map_err(anyhow::Error::msg)?.reveal().to_owned()),
            None => std::env::var("BRIDLE_PASSWORD").ok().filter(|password| !password.is_empty()),
        };
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).proxy(None).build();
        Ok(Server {
            agent: config.into(),
            url: admin.url.trim_end_matches('/').to_owned(),
            authorization: password.map(|password| format!("Bearer {password}")),
            json: admin.json,
        })
    }

    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url));
        self.answer(self.authorized(request).call())
    }

    pub(super) fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.delete(format!("{}{path}", self.url));
        self.answer(self.authorized(request).call())
    }

    pub(super) fn send(&self, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url);
        let request = if method == "PUT" { self.agent.put(url) } else { self.agent.post(url) };
        self.answer(self.authorized(request).send_json(body))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }

    fn answer(&self, outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut response = outcome.with_context(|| format!("ask {} (is the server running? --url says where)", self.url))?;
        let status = response.status();
        if status.as_u16() == NO_CONTENT {
            return Ok(Value::Null);
        }
        let body: Value = match response.body_mut().read_json() {
            Ok(body) => body,
            Err(error) if status.is_success() => return Err(error).with_context(|| format!("read the answer of {}", self.url)),
            Err(_) => bail!("{} answered {status}: is this Bridle's HTTP port?", self.url),
        };
        if !status.is_success() {
            bail!("{}", body["error"].as_str().unwrap_or(status.as_str()));
        }
        Ok(body)
    }

    pub(super) fn show<T: DeserializeOwned>(&self, body: Value, words: impl FnOnce(T) -> String) -> anyhow::Result<String> {
        match self.json {
            true => Ok(format!("{}\n", serde_json::to_string_pretty(&body)?)),
            false => Ok(words(serde_json::from_value(body).context("understand the answer (is the server of this version?)")?)),
        }
    }
}
