//! Traces of `vldm serve`: a collector that reads what arrives, and one that is not there.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::http::Server;
use super::{ended, id, plan};

/// Takes exports; each as the path it came to and what it says.
fn collector() -> (String, Receiver<(String, ExportTraceServiceRequest)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        // The connection is kept for later exports.
        let (mut stream, _) = listener.accept().unwrap();
        while let Some(export) = take(&mut stream) {
            if tell.send(export).is_err() {
                return;
            }
        }
    });
    (address, told)
}

fn take(stream: &mut TcpStream) -> Option<(String, ExportTraceServiceRequest)> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    Some((path, ExportTraceServiceRequest::decode(&body[..]).unwrap()))
}

fn text<'s>(span: &'s Span, key: &str) -> Option<&'s str> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()?;
    if let Value::StringValue(text) = value { Some(text) } else { None }
}

#[test]
fn a_request_its_job_and_the_stages_are_spans_of_the_callers_trace() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 6);
    let (address, told) = collector();
    let server = Server::start(scratch.path(), &plan, &["--otlp", &address]);
    let parent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let job = id(&server.send("POST", "/v1/videos", &["Content-Type: application/json", parent], b"{}").expect(200));
    ended(&server, &job);
    assert_eq!(server.end(), Some(0));
    let exports: Vec<_> = std::iter::from_fn(|| told.recv_timeout(Duration::from_secs(5)).ok()).collect();
    assert!(exports.iter().all(|(path, _)| path == "/v1/traces"));
    let resource = exports[0].1.resource_spans[0].resource.as_ref().unwrap();
    let name = resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(name.value.as_ref().unwrap().value, Some(Value::StringValue("vldm".to_owned())));
    let spans: Vec<&Span> = exports
        .iter()
        .flat_map(|(_, e)| &e.resource_spans)
        .flat_map(|r| &r.scope_spans)
        .flat_map(|s| &s.spans)
        .collect();
    let named = |name: &str| *spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}"));
    let hex = |bytes: &[u8]| {
        format!("{:0width$x}", bytes.iter().fold(0u128, |n, b| n << 8 | u128::from(*b)), width = 2 * bytes.len())
    };
    let (asked, made) = (named("POST /v1/videos"), named("job"));
    assert_eq!(hex(&asked.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&asked.parent_span_id), "00f067aa0ba902b7");
    assert_eq!((&made.trace_id, &made.parent_span_id), (&asked.trace_id, &asked.span_id));
    assert_eq!((text(made, "vldm.job"), text(made, "vldm.outcome")), (Some(job.as_str()), Some("made")));
    for stage in ["keyframes", "predict", "interpolate-1", "decode", "upsample", "video"] {
        let span = named(stage);
        assert_eq!((&span.trace_id, &span.parent_span_id), (&made.trace_id, &made.span_id), "{stage}");
        let within = made.start_time_unix_nano <= span.start_time_unix_nano
            && span.start_time_unix_nano < span.end_time_unix_nano
            && span.end_time_unix_nano <= made.end_time_unix_nano;
        assert!(within, "{stage}");
    }
    assert!(spans.iter().any(|span| text(span, "http.route") == Some("/v1/videos/{id}")));
    assert!(spans.iter().all(|span| text(span, "url.path") != Some("/health/ready")));
}

#[test]
fn a_collector_that_is_away_keeps_no_job_and_no_shutdown_waiting() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 1);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(scratch.path(), &plan, &["--otlp", &format!("http://{nobody}")]);
    let job = id(&server.post("/v1/videos", &serde_json::json!({"steps": 1})).expect(200));
    assert_eq!(ended(&server, &job)["status"], "completed");
    let began = std::time::Instant::now();
    assert_eq!(server.end(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
