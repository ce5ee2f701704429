//! Webhooks of `vldm serve`: a receiver that is not always there, and the check of the real `openai` SDK.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};
use vldm_tests::python;

use super::http::Server;
use super::{ended, id, plan};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Checks what was delivered; `secret` is that of the server.
const SCRIPT: &str = r#"
import json, sys
import openai

job = json.loads(sys.argv[1])
client = openai.OpenAI(api_key="none", webhook_secret=job["secret"])
for got in job["deliveries"]:
    event = client.webhooks.unwrap(got["body"], got["headers"])
    assert event.object == "event" and isinstance(event.created_at, int), event
    assert event.id == got["headers"]["webhook-id"], event
    for body, secret in [(got["body"] + " ", None), (got["body"], "whsec_" + "A" * 32)]:
        try:
            client.webhooks.unwrap(body, got["headers"], secret=secret)
            raise AssertionError("it is signed otherwise")
        except openai.InvalidWebhookSignatureError:
            pass
"#;

/// Answers requests with these heads, one after the other, and tells what was asked.
fn receiver(answers: &'static [&'static str]) -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut bytes, mut byte) = (Vec::new(), [0]);
            while !bytes.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                bytes.push(byte[0]);
            }
            let head = String::from_utf8(bytes).unwrap();
            let pairs = head.lines().filter_map(|line| line.split_once(": "));
            let headers: serde_json::Map<String, Value> = pairs.map(|(k, v)| (k.to_lowercase(), v.into())).collect();
            let mut body = vec![0; headers["content-length"].as_str().unwrap().parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            let (first, body) = (head.lines().next().unwrap(), String::from_utf8(body).unwrap());
            if tell.send(json!({"request": first, "headers": headers, "body": body})).is_err() {
                return;
            }
        }
    });
    (address, told)
}

#[test]
fn the_end_of_a_video_is_told_once_it_can_be_even_after_a_kill() {
    let (address, told) =
        receiver(&["503 Busy", "204 No Content", "200 OK", "302 Found\r\nLocation: /elsewhere", "200 OK"]);
    let scratch = tempfile::tempdir().unwrap();
    let (plan, secret) = (plan(scratch.path(), 1), scratch.path().join("secret"));
    fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let (url, secret) = (format!("http://{address}/events"), secret.to_str().unwrap());
    let to = ["--webhook", &url, "--webhook-secret", secret];
    let hear = || told.recv_timeout(Duration::from_mins(1)).unwrap();
    let event = |delivery: &Value| serde_json::from_str::<Value>(delivery["body"].as_str().unwrap()).unwrap();
    let mut server = Server::start(scratch.path(), &plan, &[&to[..], &["--deadline", "0"]].concat());
    let first = id(&server.post("/v1/videos", &json!({})).expect(200));
    let refused = hear();
    assert_eq!(refused["request"], "POST /events HTTP/1.1");
    assert_eq!(event(&refused)["type"], "video.failed");
    assert_eq!(event(&refused)["data"], json!({"id": first}));
    // What it has learned is on disk when it counts it.
    while !server.get("/metrics").text().contains("vldm_webhooks_total{outcome=\"failed\"} 1") {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    server.kill();
    let server = Server::start(scratch.path(), &plan, &to);
    let taken = hear();
    assert_eq!(taken["body"], refused["body"], "the same event");
    assert_eq!(taken["headers"]["webhook-id"], refused["headers"]["webhook-id"]);
    let second = id(&server.post("/v1/videos", &json!({})).expect(200));
    let done = hear();
    assert_eq!(event(&done)["type"], "video.completed");
    assert_eq!(event(&done)["data"], json!({"id": second}));
    assert_eq!(ended(&server, &second)["completed_at"], event(&done)["created_at"]);
    let third = id(&server.post("/v1/videos", &json!({"seed": 5})).expect(200));
    let moved = hear();
    assert_eq!(event(&moved)["data"]["id"], third.as_str());
    assert!(told.recv_timeout(Duration::from_secs(1)).is_err(), "a redirect is not followed");
    assert!(server.get("/metrics").text().contains("vldm_webhooks_waiting 1\n"));
    let job = json!({"secret": SECRET, "deliveries": [refused, taken, done, moved]});
    python::client("openai==3.54.0", SCRIPT, &job.to_string());
}

#[test]
fn a_video_that_is_cancelled_is_no_event_and_endpoints_that_cannot_be_are_errors() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, secret) = (plan(scratch.path(), 900), scratch.path().join("secret"));
    fs::write(&secret, SECRET).unwrap();
    let secret = secret.to_str().unwrap();
    let fails = |more: &[&str], said: &str| {
        let args = [&["serve", plan.to_str().unwrap(), "--listen", "127.0.0.1:0"], more].concat();
        let ran = vldm_tests::program::vldm(args);
        assert!(ran.code != Some(0) && ran.stderr.contains(said), "{}", ran.stderr);
    };
    fails(&["--webhook", "http://127.0.0.1:1/"], "--webhook-secret");
    fails(&["--webhook", "file:///etc/passwd", "--webhook-secret", secret], "expected an address such as https://");
    fails(&["--webhook", "http://127.0.0.1:1/", "--webhook-secret", plan.to_str().unwrap()], "expected whsec_");
    let (address, told) = receiver(&["200 OK"]);
    let url = format!("http://{address}/");
    let server = Server::start(scratch.path(), &plan, &["--webhook", &url, "--webhook-secret", secret]);
    let job = id(&server.post("/v1/videos", &json!({})).expect(200));
    server.post(&format!("/v1/videos/{job}/cancel"), &json!({})).expect(200);
    assert!(told.recv_timeout(Duration::from_secs(1)).is_err());
    assert!(server.get("/metrics").text().contains("vldm_webhooks_waiting 0\n"));
}
