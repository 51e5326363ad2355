//! TLS certificates of a process, for clients and for its cluster: reload at runtime, and
//! expiry.
//!
//! SIGHUP reloads all of them. CONFIG SET of `tls-cert-file`, `tls-key-file` or
//! `tls-ca-cert-file` reloads those for clients; CONFIG SET of `cluster-cert-file`,
//! `cluster-key-file` or `cluster-ca-file` reloads the cluster's. A reload is all or
//! nothing: when a file can't be read or does not fit its key, none is used, and the log
//! (and CONFIG SET's error) names it. Open connections keep their certificates.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use cluster::net::{Net, NetTls};
use proxy::host::CertificateError;
use proxy::tls::{Tls, TlsFiles};

/// The certificates that the process uses.
pub(crate) struct Certificates {
    clients: Option<Arc<Tls>>,
    cluster: OnceLock<Arc<Net>>,
    /// Serialises reloads, so that all certificates in use come from one reload.
    changing: parking_lot::Mutex<()>,
}

impl Certificates {
    pub(crate) fn new(clients: Option<Arc<Tls>>) -> Certificates {
        Certificates { clients, cluster: OnceLock::new(), changing: parking_lot::Mutex::default() }
    }

    /// Sets the network of the process's cluster. Once.
    pub(crate) fn of_cluster(&self, net: &Arc<Net>) {
        self.cluster.get_or_init(|| net.clone());
    }

    /// Clients are served by TLS.
    pub(crate) fn has_client_tls(&self) -> bool {
        self.clients.is_some()
    }

    /// The cluster uses TLS.
    pub(crate) fn has_cluster_tls(&self) -> bool {
        self.cluster.get().is_some_and(|net| net.tls_name().is_some())
    }

    /// Reads the certificates of each kind that the process uses and that files are given
    /// for, and uses them from now on; changes nothing on an error.
    pub(crate) fn renew(
        &self,
        for_clients: Option<&TlsFiles>,
        of_cluster: Option<&TlsFiles>,
    ) -> Result<(), CertificateError> {
        let _one_at_a_time = self.changing.lock();
        let for_clients = for_clients.filter(|_| self.clients.is_some());
        let clients = for_clients.map(proxy::tls::read).transpose()?;
        let read = |net: &Arc<Net>| {
            let (files, name) = (of_cluster?, net.tls_name()?);
            let ca = files.authority.clone().unwrap_or_default();
            Some(net.read_tls(&NetTls {
                ca,
                cert: files.cert.clone(),
                key: files.key.clone(),
                name: name.map(str::to_owned),
            }))
        };
        let cluster = self.cluster.get().and_then(read).transpose()?;
        if let (Some(tls), Some(credentials)) = (&self.clients, clients) {
            tls.renew(credentials);
        }
        if let (Some(net), Some(credentials)) = (self.cluster.get(), cluster) {
            net.renew_tls(credentials);
        }
        for (which, seconds) in self.seconds_left() {
            tracing::info!(
                which,
                days = seconds / 86_400,
                "certificates reloaded; days until the first of them expires"
            );
        }
        Ok(())
    }

    /// Seconds until the first certificate of each kind expires; negative after that.
    pub(crate) fn seconds_left(&self) -> Vec<(&'static str, i64)> {
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let mut left = Vec::new();
        let mut first = |which, certificates: &mut dyn Iterator<Item = &[u8]>| {
            left.extend(certificates.filter_map(not_after).min().map(|at| (which, at - now)));
        };
        if let Some(clients) = self.clients.as_ref().map(|tls| tls.credentials()) {
            first("clients", &mut clients.chain.iter().map(|one| one.as_ref()));
            first("clients_ca", &mut clients.client_ca.iter().map(|one| one.as_ref()));
        }
        if let Some((chain, authorities)) = self.cluster.get().and_then(|net| net.certificates()) {
            first("cluster", &mut chain.iter().map(Vec::as_slice));
            first("cluster_ca", &mut authorities.iter().map(Vec::as_slice));
        }
        left
    }
}

/// Expiry of a certificate, seconds since the epoch. RFC 5280, 4.1: in the certificate's
/// first part the fifth field (the fourth without a version) is the validity, whose
/// second time is `notAfter`. `None`: not a certificate; the TLS library has reported it.
fn not_after(certificate: &[u8]) -> Option<i64> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    // [0] version, then serial number, algorithm, issuer.
    if let Some((0xa0, _, rest)) = element(fields) {
        fields = rest;
    }
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (_, validity, _) = element(fields)?;
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    seconds(tag, std::str::from_utf8(time).ok()?)
}

/// The first element of DER: tag, content, and the bytes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (bytes, rest) = rest
                .split_at_checked(usize::from(first & 0x7f))
                .filter(|(bytes, _)| bytes.len() <= 4)?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` (UTCTime, up to 2049) or `YYYYMMDDHHMMSSZ` (GeneralizedTime), the only
/// forms that a certificate may have.
fn seconds(tag: u8, text: &str) -> Option<i64> {
    let digits =
        text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match tag {
        0x17 => digits.split_at_checked(2).map(|(year, rest)| {
            (
                year.parse::<i64>().map(|year| if year < 50 { 2000 + year } else { 1900 + year }),
                rest,
            )
        })?,
        0x18 => digits.split_at_checked(4).map(|(year, rest)| (year.parse::<i64>(), rest))?,
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2).and_then(|two| two.parse::<i64>().ok());
    let (month, day) = (part(0)?, part(2)?);
    Some(((days(year.ok()?, month, day) * 24 + part(4)?) * 60 + part(6)?) * 60 + part(8)?)
}

/// Days of the Gregorian calendar since 1970-01-01 (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", days_from_civil).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn expiry_is_read_from_the_certificate() {
        for (year, month, day, at) in [
            (2030, 3, 1, 1_898_553_600),
            (2049, 12, 31, 2_524_521_600),
            (2099, 1, 1, 4_070_908_800),
        ] {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = date_time_ymd(year, month, day);
            let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(not_after(made.der()), Some(at), "{year}-{month}-{day}");
            for end in 0..made.der().len().min(200) {
                assert_eq!(not_after(&made.der()[..end]), None, "cut at {end}");
            }
        }
        assert_eq!(seconds(0x17, "700101000001Z"), Some(1));
        assert_eq!(
            (seconds(0x17, "70010100000Z"), seconds(0x02, "700101000001Z"), seconds(0x17, "x")),
            (None, None, None)
        );
    }
}
