//! TLS for clients: certificates from PEM files to a rustls configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// Where the certificates are.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's chain, its own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// When set, clients must show a certificate signed by one of these.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or no PEM.
    #[error("read {file}: {why}")]
    File {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key does not belong to the certificate, or the like.
    #[error("use the certificates: {0}")]
    Config(String),
}

/// A configuration for [`crate::serve`].
pub fn server_config(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let config_error = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| config_error(&error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for cert in certificates(file)? {
                roots.add(cert).map_err(|error| config_error(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| config_error(&error))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| file_error(&files.key, error))?;
    let config = builder.with_single_cert(certificates(&files.cert)?, key).map_err(|error| config_error(&error))?;
    Ok(Arc::new(config))
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
