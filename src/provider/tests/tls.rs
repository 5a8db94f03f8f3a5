//! Server certificates: one that is expired, of another name or of an unknown authority gets not a
//! byte.

use std::{env, fs, future::pending, path::Path, process::Command, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer},
};
use tokio_util::task::TaskTracker;

use super::outbound::{profile, send};
use crate::provider::{Network, Verdict};

/// The folder of the test's own certificates, the only ones that its process trusts.
const FOLDER: &str = "TEST_TLS_FOLDER";

/// An authority that signs certificates.
fn authority() -> (Issuer<'static, KeyPair>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let der = params.self_signed(&key).unwrap().der().to_vec();
    (Issuer::new(params, key), der)
}

/// A provider on this machine with a certificate of that authority, and what has reached it in clear.
async fn provider(
    of: &Issuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.signed_by(&key, of).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let arrived = Arc::clone(&seen);
    // It ends with the test's runtime.
    TaskTracker::new().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            let _ = stream.read_buf(&mut request).await;
            arrived.lock().extend(&request);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            let _ = stream.shutdown().await;
        }
        pending::<()>().await;
    });
    (port, seen)
}

/// Runs the test in a process that trusts one authority alone, which the test writes there.
fn in_a_process_of_its_own(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &name])
        .env(FOLDER, folder.path())
        .env("SSL_CERT_FILE", folder.path().join("authority.pem"))
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn only_a_certificate_that_is_good_here_and_now_is_spoken_to() {
    let Some(folder) = env::var_os(FOLDER) else {
        return in_a_process_of_its_own(
            "only_a_certificate_that_is_good_here_and_now_is_spoken_to",
        );
    };
    let (known, der) = authority();
    let (stranger, _) = authority();
    let pem = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        STANDARD.encode(der)
    );
    fs::write(Path::new(&folder).join("authority.pem"), pem).unwrap();
    let ask = async |port: u16| {
        send(&format!("https://localhost:{port}/token"), &profile(Network::Loopback)).await
    };

    let (port, seen) = provider(&known, |_| {}).await;
    assert_eq!(ask(port).await.unwrap().status, 200);
    assert!(seen.lock().starts_with(b"POST /token "));

    let expired = provider(&known, |params| params.not_after = date_time_ymd(2020, 1, 1)).await;
    let early = provider(&known, |params| params.not_before = date_time_ymd(4000, 1, 1)).await;
    let named = provider(&known, |params| {
        *params = CertificateParams::new(vec!["provider.example".to_owned()]).unwrap();
    })
    .await;
    let strange = provider(&stranger, |_| {}).await;
    for (why, (port, seen)) in
        [("expired", expired), ("early", early), ("another name", named), ("unknown", strange)]
    {
        let error = ask(port).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::NotSent, "{why}: {error:?}");
        assert!(seen.lock().is_empty(), "{why}");
    }
}
