//! TLS: the certificate and its key, read before the port opens and again when they are renewed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is none.
    #[error("{}: expected {expected} in PEM: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        expected: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The key is not the certificate's, or is of a kind that is not supported.
    #[error("{} with the key of {}: {source}", chain.display(), key.display())]
    Pair {
        /// File of the certificate.
        chain: PathBuf,
        /// File of its key.
        key: PathBuf,
        /// What does not fit.
        source: rustls::Error,
    },
}

/// A certificate, with the files that it came from.
#[derive(Debug)]
pub struct Tls {
    chain: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads a certificate, with those between it and its authority after it, and its private key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let config = RwLock::new(Arc::new(read(chain, key)?));
        Ok(Self { chain: chain.to_path_buf(), key: key.to_path_buf(), config })
    }

    /// Reads the files again, for connections from now on. What was there before stays when they cannot be used.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Arc::new(read(&self.chain, &self.key)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// What greets the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// TLS 1.2 and 1.3 with the defaults of rustls; HTTP/1.1 is all that is spoken inside.
fn read(chain: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let file = |path: &Path, expected| {
        let path = path.to_path_buf();
        move |source| TlsError::File { path, expected, source }
    };
    let certificates = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(file(chain, "a certificate"))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(file(key, "a private key"))?;
    let pair = |source| TlsError::Pair { chain: chain.to_path_buf(), key: key.to_path_buf(), source };
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(pair)?.with_no_client_auth();
    let mut config = builder.with_single_cert(certificates, private).map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
