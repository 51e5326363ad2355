//! TLS for clients: certificates from PEM files to a rustls configuration, which can be
//! reloaded while connections are open.
//!
//! # Invariants
//! - Certificate and key are read and used together or not at all: files that do not
//!   match change nothing (`tests/tls.rs`,
//!   `certificates_are_reloaded_together_or_not_at_all`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// Files of the certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, its own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// If set, clients must present a certificate signed by one of these.
    pub authority: Option<PathBuf>,
}

/// Reasons why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or is not PEM.
    #[error("read {file}: {why}")]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        why: String,
    },
    /// The key does not match the certificate, or similar.
    #[error("use the certificates: {0}")]
    Config(String),
}

/// The verified contents of the files.
#[derive(Debug, Clone)]
pub struct Credentials {
    config: Arc<rustls::ServerConfig>,
    /// The server's certificate chain, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Authorities of client certificates.
    pub client_ca: Vec<CertificateDer<'static>>,
}

/// The TLS configuration in use: new handshakes use the credentials loaded last.
#[derive(Debug)]
pub struct Tls(ArcSwap<Credentials>);

impl Tls {
    /// TLS with these credentials.
    pub fn new(credentials: Credentials) -> Arc<Tls> {
        Arc::new(Tls(ArcSwap::from_pointee(credentials)))
    }

    /// Replaces the credentials for new handshakes.
    pub fn renew(&self, credentials: Credentials) {
        self.0.store(Arc::new(credentials));
    }

    /// The credentials in use.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.0.load_full()
    }

    pub(crate) fn config(&self) -> Arc<rustls::ServerConfig> {
        self.0.load().config.clone()
    }
}

/// Reads certificates and key together, and checks that they match.
///
/// # Errors
/// The unreadable file or the mismatch.
pub fn read(files: &TlsFiles) -> Result<Credentials, TlsError> {
    let config_error = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| config_error(&error))?;
    let client_ca = files.authority.as_deref().map_or(Ok(Vec::new()), certificates)?;
    let builder = match files.authority.is_some() {
        false => builder.with_no_client_auth(),
        true => {
            let mut roots = RootCertStore::empty();
            for cert in &client_ca {
                roots.add(cert.clone()).map_err(|error| config_error(&error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| config_error(&error))?)
        }
    };
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| file_error(&files.key, error))?;
    let chain = certificates(&files.cert)?;
    let config =
        builder.with_single_cert(chain.clone(), key).map_err(|error| config_error(&error))?;
    Ok(Credentials { config: Arc::new(config), chain, client_ca })
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(file_error(file, "no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(file_error(file, error)),
    }
}

fn file_error(file: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { file: file.to_owned(), why: why.to_string() }
}
