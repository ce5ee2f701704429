//! `vldm serve --tls-cert --tls-key`, as Python's `ssl` and slow clients see it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use vldm_tests::python;

use super::http::Server;
use super::plan;

/// Asks over TLS, trusting nothing but the certificate in the second argument, which has to say `vldm test` and the third.
const ASK: &str = r#"
import http.client, ssl, sys

address, certificate, name = sys.argv[1:]
trust = ssl.create_default_context(cafile=certificate)
trust.set_alpn_protocols(["h2", "http/1.1"])
client = http.client.HTTPSConnection(address, context=trust, timeout=30)
for _ in range(2):
    client.request("GET", "/v1/models")
    answer = client.getresponse()
    assert answer.status == 200 and b'"tiny"' in answer.read()
found = dict(pair[0] for pair in client.sock.getpeercert()["subject"])["commonName"]
assert found == f"vldm test {name}", found
assert client.sock.selected_alpn_protocol() == "http/1.1", client.sock.selected_alpn_protocol()
old = ssl.create_default_context(cafile=certificate)
old.maximum_version = ssl.TLSVersion.TLSv1_1
try:
    http.client.HTTPSConnection(address, context=old, timeout=30).request("GET", "/")
    raise AssertionError("TLS 1.1 is spoken")
except (ssl.SSLError, ConnectionError):
    pass
"#;

/// Reads until the server ends the connection, and how long that took.
fn ends(mut stream: &TcpStream) -> Duration {
    let began = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut bytes = Vec::new();
    // A reset is an end too.
    let end = stream.read_to_end(&mut bytes);
    assert!(end.is_ok() || began.elapsed() < Duration::from_secs(29), "{end:?}");
    began.elapsed()
}

#[test]
fn tls_is_spoken_and_the_certificate_is_read_again_when_the_server_is_told_to() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 1);
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| scratch.path().join(name));
    let put = |name: &str| {
        let fixtures = vldm_tests::root().join("tests/fixtures/tls");
        fs::copy(fixtures.join(format!("{name}.cert.pem")), &certificate).unwrap();
        fs::copy(fixtures.join(format!("{name}.key.pem")), &key).unwrap();
    };
    put("first");
    let jobs = scratch.path().join("jobs");
    let files = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let place = [plan.to_str().unwrap(), "--folder", jobs.to_str().unwrap(), "--max-arrival", "2"];
    let server = Server::spawn(&[&place[..], &files].concat());
    let ask = |name| python::standard(ASK, &[&server.address, certificate.to_str().unwrap(), name]);
    if ask("first").is_none() {
        return;
    }
    let mut plain = TcpStream::connect(&server.address).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    ends(&plain);
    let silent = TcpStream::connect(&server.address).unwrap();
    assert!(ends(&silent) < Duration::from_secs(10), "a handshake that never comes");
    fs::write(&key, "no key").unwrap();
    server.signal("HUP");
    std::thread::sleep(Duration::from_millis(300));
    put("second");
    server.signal("HUP");
    std::thread::sleep(Duration::from_millis(300));
    ask("second");
    assert_eq!(server.end(), Some(0));
}

#[test]
fn a_certificate_that_cannot_be_used_is_an_error_before_the_port_opens() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 1);
    let of = |name: &str| vldm_tests::root().join("tests/fixtures/tls").join(name).to_str().unwrap().to_owned();
    let empty = scratch.path().join("empty.pem").to_str().unwrap().to_owned();
    fs::write(&empty, "").unwrap();
    for (certificate, key, said) in [
        (of("first.cert.pem"), of("second.key.pem"), "key"),
        (of("first.key.pem"), of("first.key.pem"), "certificate"),
        (of("first.cert.pem"), of("first.cert.pem"), "expected a private key in PEM"),
        (empty.clone(), of("first.key.pem"), "certificate"),
        (of("none.pem"), of("first.key.pem"), "expected a certificate in PEM"),
    ] {
        let args =
            ["serve", plan.to_str().unwrap(), "--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
        let ran = vldm_tests::program::vldm(args).expect(1);
        assert!(ran.stderr.contains(said) && !ran.stderr.contains("listening"), "{}", ran.stderr);
    }
    vldm_tests::program::vldm(["serve", plan.to_str().unwrap(), "--tls-cert", &empty]).expect(2);
}

#[test]
fn clients_that_never_end_their_head_are_left() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 1);
    let server = Server::start(scratch.path(), &plan, &["--max-arrival", "1"]);
    let mut slow = TcpStream::connect(&server.address).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nX-").unwrap();
    let idle = TcpStream::connect(&server.address).unwrap();
    assert!(ends(&slow) < Duration::from_secs(10) && ends(&idle) < Duration::from_secs(10));
    assert_eq!(server.get("/health/ready").status, 200);
}
