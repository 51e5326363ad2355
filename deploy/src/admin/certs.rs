//! `bridle admin certs`: a private certificate authority, and certificates signed by it,
//! for TLS between the processes of a cluster.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Certificates are valid from this long ago, since the clocks of machines differ.
const EARLIER: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Validity of the authority, days.
const CA_DAYS: u32 = 3650;

/// Writes `ca.pem`, and `<host>.pem` and `<host>.key` of each host; the authority's own
/// key, `ca.key`, should stay on this machine. Returns the configuration for each host.
pub(super) fn make(dir: &Path, days: u32, hosts: &[String], json: bool) -> anyhow::Result<String> {
    let shown = dir.display();
    fs::create_dir_all(dir).with_context(|| format!("create {shown}"))?;
    let (ca, ca_key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let key = match (ca.exists(), ca_key.exists()) {
        (true, true) => KeyPair::from_pem(&read(&ca_key)?)
            .with_context(|| format!("parse {}", ca_key.display()))?,
        (false, false) => {
            let key = KeyPair::generate().context("generate the authority's key")?;
            let certificate = authority(CA_DAYS)?
                .self_signed(&key)
                .context("make the authority's certificate")?;
            write_secret(&ca_key, &key.serialize_pem())?;
            write(&ca, &certificate.pem())?;
            key
        }
        _ => bail!("{shown} has one of ca.pem and ca.key: both are needed, or neither"),
    };
    // A signature needs the authority's name and key only, so the rest of its certificate
    // need not be the one on disk.
    let issuer = Issuer::new(authority(CA_DAYS)?, key);
    for host in hosts {
        if host.is_empty() || host.contains(['/', '\\', '\0']) || host == "ca" {
            bail!("'{host}' is not a host");
        }
        let own = KeyPair::generate().context("generate a key")?;
        let mut params = CertificateParams::new(vec![host.clone()])
            .with_context(|| format!("make a certificate for '{host}'"))?;
        valid(&mut params, days);
        params.distinguished_name.push(DnType::CommonName, host.clone());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Each process is a server and a client of the others.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(&own, &issuer)
            .with_context(|| format!("sign the certificate of '{host}'"))?;
        write_secret(&dir.join(format!("{host}.key")), &own.serialize_pem())?;
        write(&dir.join(format!("{host}.pem")), &certificate.pem())?;
    }
    let path = |name: String| {
        fs::canonicalize(dir.join(&name)).unwrap_or(dir.join(name)).display().to_string()
    };
    let made: Vec<_> = hosts
        .iter()
        .map(|host| {
            let (cert, key) = (path(format!("{host}.pem")), path(format!("{host}.key")));
            serde_json::json!({ "host": host, "cert_file": cert, "key_file": key })
        })
        .collect();
    if json {
        return Ok(format!(
            "{}\n",
            serde_json::to_string_pretty(
                &serde_json::json!({ "ca_file": path("ca.pem".to_owned()), "hosts": made })
            )?
        ));
    }
    let mut out = String::new();
    for host in made {
        let field = |key: &str| host[key].as_str().unwrap_or_default().to_owned();
        out.push_str(&format!(
            "# on {}\n[cluster]\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n\n",
            field("host"),
            field("cert_file"),
            field("key_file"),
            path("ca.pem".to_owned())
        ));
    }
    Ok(out
        + &format!(
            "Keep {} secret: everyone who has it can join the cluster.\n",
            path("ca.key".to_owned())
        ))
}

/// The authority's certificate, reproducible from the same key.
fn authority(days: u32) -> anyhow::Result<CertificateParams> {
    let mut params =
        CertificateParams::new(Vec::new()).context("prepare the authority's certificate")?;
    valid(&mut params, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Bridle cluster authority");
    Ok(params)
}

fn valid(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - EARLIER).into();
    params.not_after = (now + DAY * days).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Writes a file that is unreadable for others from the first byte on.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let shown = || format!("write {}", path.display());
    if path.exists() {
        fs::remove_file(path).with_context(shown)?;
    }
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(path).with_context(shown)?;
    file.write_all(text.as_bytes()).with_context(shown)
}
