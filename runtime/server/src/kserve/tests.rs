//! The protocol over a real socket, on an engine that doubles numbers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vldm_runtime::{BackendError, Port, Probe, Session, Tensor};

use super::*;

/// Loads anything; twice `x`, and `n` as it is. A first element of 13 makes it panic.
struct Doubling;

static DOUBLING: Doubling = Doubling;

impl Backend for Doubling {
    fn name(&self) -> &'static str {
        "doubling"
    }

    fn probe(&self, _: Option<&Path>) -> Probe {
        Probe { version: Some("1".to_owned()), detail: String::new() }
    }

    fn load(&self, model: &Path, _: &LoadOptions) -> Result<Box<dyn Session>, BackendError> {
        if model.ends_with("broken.onnx") {
            return Err(BackendError::Model { path: model.to_owned(), what: "broken".to_owned() });
        }
        Ok(Box::new(Doubled))
    }

    fn lanes(&self, _: usize) -> usize {
        1
    }
}

struct Doubled;

impl Session for Doubled {
    fn inputs(&self) -> &[Port] {
        &[]
    }

    fn outputs(&self) -> &[Port] {
        &[]
    }

    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
        let given = |name: &str| inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| *t).unwrap();
        let x = given("x");
        let doubled: Vec<f32> = x.as_f32().unwrap().iter().map(|x| x * 2.0).collect();
        assert!(doubled[0].to_bits() != 26_f32.to_bits(), "an engine that panics");
        Ok(vec![Tensor::from_f32(x.shape(), doubled).unwrap(), given("n").clone()])
    }
}

fn manifest() -> Manifest {
    let x = json!({"name": "x", "dtype": "f32", "shape": ["batch", 2]});
    let n = json!({"name": "n", "dtype": "i64", "shape": ["batch"]});
    let part = |file: &str| {
        json!({"file": file, "bytes": 60, "blake3": "0".repeat(64), "weights": [],
            "inputs": [x, n], "outputs": [x, n]})
    };
    let scheduler = serde_json::to_value(vldm_graphs::bundle::Scheduler::default()).unwrap();
    serde_json::from_value(json!({
        "format": 1, "producer": "test", "family": "test", "weights": {},
        "parts": {"net": part("net.onnx"), "broken": part("broken.onnx")},
        "cascade": {"labels": [], "scheduler": scheduler, "scaling_factor": 1.0, "latent_channels": 4,
            "latent_size": [2, 2], "spatial_factor": 8, "window": 1, "key_fps": 1.0},
    }))
    .unwrap()
}

fn serve(limits: Limits, ready: &Arc<AtomicBool>) -> SocketAddr {
    let bundle = Bundle { name: "te.st".to_owned(), dir: PathBuf::from("/nowhere"), manifest: manifest() };
    let engine = Engine { backend: &DOUBLING, options: LoadOptions::default() };
    let ready = Arc::clone(ready);
    let app = router(vec![bundle], engine, limits, Arc::new(move || ready.load(Ordering::Relaxed)));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, app).await.unwrap();
        });
    });
    told.recv().unwrap()
}

fn server() -> SocketAddr {
    serve(Limits { body: 4096, elements: 64, memory: 100, ..Limits::default() }, &Arc::new(AtomicBool::new(true)))
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    fn error(&self) -> String {
        assert!((400..500).contains(&self.status), "{}", self.head);
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

/// `head` is the request line and further headers, each with its line end.
fn send(server: SocketAddr, head: &str, body: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!("{head}Host: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // A server that has refused may have closed already.
    let _ = stream.write_all(body);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole reply");
    let head = String::from_utf8(all[..end].to_vec()).unwrap().to_lowercase();
    Reply { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head, body: all[end + 4..].to_vec() }
}

fn get(server: SocketAddr, path: &str) -> Reply {
    send(server, &format!("GET {path} HTTP/1.1\r\n"), b"")
}

fn post(server: SocketAddr, path: &str, body: &str) -> Reply {
    send(server, &format!("POST {path} HTTP/1.1\r\n"), body.as_bytes())
}

fn request() -> Value {
    json!({"inputs": [
        {"name": "n", "shape": [1], "datatype": "INT64", "data": [-7]},
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[0.5, 2]]},
    ]})
}

fn infer(server: SocketAddr, request: &Value) -> Reply {
    post(server, "/v2/models/te.st.net/infer", &request.to_string())
}

#[test]
fn health_and_metadata_are_those_of_the_protocol() {
    let ready = Arc::new(AtomicBool::new(true));
    let server = serve(Limits::default(), &ready);
    assert_eq!(get(server, "/v2/health/live").json(), json!({"live": true}));
    assert_eq!(get(server, "/v2/health/ready").status, 200);
    let extensions = get(server, "/v2").json()["extensions"].clone();
    assert!(extensions.as_array().unwrap().contains(&json!("binary_tensor_data")));
    let metadata = get(server, "/v2/models/te.st.net/versions/1").json();
    assert_eq!(metadata["versions"], json!(["1"]));
    assert_eq!(metadata["inputs"][0], json!({"name": "x", "datatype": "FP32", "shape": [-1, 2]}));
    assert_eq!(get(server, "/v2/models/te%2Est.net").json(), metadata);
    assert_eq!(get(server, "/v2/models/te.st.net/ready").json(), json!({"name": "te.st.net", "ready": true}));
    assert_eq!(get(server, "/v2/models/te.st.net/config").json()["input"][1]["data_type"], "TYPE_INT64");
    assert_eq!(post(server, "/v2/repository/index", "{\"ready\": true}").json()[1]["name"], "te.st.net");
    ready.store(false, Ordering::Relaxed);
    assert_eq!(get(server, "/v2/health/ready").status, 503);
    assert_eq!(get(server, "/v2/health/live").status, 200);
    assert_eq!(infer(server, &request()).status, 503);
}

#[test]
fn json_in_json_out_with_the_id_and_in_the_order_asked_for() {
    let mut request = request();
    request["id"] = json!("a \"quoted\" id");
    request["outputs"] = json!([{"name": "n"}, {"name": "x"}]);
    let reply = infer(server(), &request);
    assert_eq!(
        reply.json(),
        json!({"model_name": "te.st.net", "model_version": "1", "id": "a \"quoted\" id", "outputs": [
            {"name": "n", "datatype": "INT64", "shape": [1], "data": [-7]},
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 4.0]},
        ]})
    );
}

/// A request whose `x` is binary and which wants everything in binary.
fn binary(length: Option<usize>, x: &[u8]) -> (String, Vec<u8>) {
    let mut json = request();
    json["parameters"] = json!({"binary_data_output": true});
    json["inputs"][1] =
        json!({"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": x.len()}});
    let mut body = json.to_string().into_bytes();
    let length = length.unwrap_or(body.len());
    body.extend_from_slice(x);
    let head = format!("POST /v2/models/te.st.net/infer HTTP/1.1\r\nInference-Header-Content-Length: {length}\r\n");
    (head, body)
}

#[test]
fn binary_tensors_go_both_ways() {
    let bytes: Vec<u8> = [1.5_f32, f32::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    let (head, body) = binary(None, &bytes);
    let reply = send(server(), &head, &body);
    let length = reply.head.split("inference-header-content-length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    let json: Value = serde_json::from_slice(&reply.body[..length]).unwrap();
    assert_eq!(json["outputs"][0]["parameters"], json!({"binary_data_size": 8}));
    let expected: Vec<u8> = [3.0_f32, f32::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(reply.body[length..], [expected, (-7_i64).to_le_bytes().to_vec()].concat());
}

#[test]
fn wrong_lengths_are_told() {
    let server = server();
    let error = |length, x: &[u8]| {
        let (head, body) = binary(length, x);
        send(server, &head, &body).error()
    };
    assert!(error(None, &[0; 7]).contains("1, 2] of FP32 is 2 times 4 bytes, binary_data_size is 7"));
    assert!(error(Some(5000), &[0; 8]).contains("Inference-Header-Content-Length is 5000"));
    assert!(error(Some(10), &[0; 8]).contains("EOF"));
    let (head, mut body) = binary(None, &[0; 8]);
    body.push(0);
    assert!(send(server, &head, &body).error().contains("1 bytes follow the last binary tensor"));
    body.truncate(body.len() - 2);
    assert!(send(server, &head, &body).error().contains("binary_data_size: 7 bytes are left"));
    let bad = head.replace("Content-Length: ", "Content-Length: -");
    assert!(send(server, &bad, &body).error().contains("expected bytes, found \"-"));
}

#[test]
fn every_wrong_request_is_refused_with_its_reason() {
    let server = server();
    for (pointer, value, wanted) in [
        ("/inputs/1/shape", json!([1, 3]), "expected shape [batch, 2], found [1, 3]"),
        ("/inputs/1/shape", json!([2, 2]), "`batch` is 2 here and 1 in `n`"),
        ("/inputs/1/shape", json!([0, 2]), "found [0, 2]"),
        ("/inputs/1/shape", json!([-1, 2]), "invalid value: integer `-1`"),
        ("/inputs/1/shape", json!(vec![1; 40]), "found rank 40"),
        ("/inputs/1/shape", json!([1_u64 << 63, 1_u64 << 63]), "above 64 elements"),
        ("/inputs/1/shape", json!([u64::MAX, 2]), "above 64 elements"),
        ("/inputs/1/datatype", json!("FP16"), "expected datatype FP32, found \"FP16\""),
        ("/inputs/1/data", json!(["NaN", 1]), "expected a number"),
        ("/inputs/1/data", json!([1, 2, 3]), "has 2 elements, `data` is 3"),
        ("/inputs/1/data", json!([[1], [2]]), "in lists of [2, 1]"),
        ("/inputs/1/data", json!([1e39, 0]), "element 0 is 1e39, outside of FP32"),
        ("/inputs/0/data", json!([0.5]), "expected whole numbers"),
        ("/inputs/0/data", Value::Null, "neither `data` nor `binary_data_size`"),
        ("/inputs/0/name", json!("x"), "input `x` must be given once, found 2 times"),
        ("/inputs/0/name", json!("y"), "no input is called \"y\""),
        ("/inputs", json!([]), "found 0 times"),
    ] {
        let mut request = request();
        *request.pointer_mut(pointer).unwrap() = value.clone();
        let error = infer(server, &request).error();
        assert!(error.contains(wanted), "{pointer} {value}: {error}");
    }
    for (key, value, wanted) in [
        ("surprise", json!(1), "unknown field `surprise`"),
        ("parameters", json!({"sequence_id": 1}), "unknown parameter \"sequence_id\""),
        ("parameters", json!({"binary_data_output": 1}), "expected true or false, found 1"),
        ("parameters", json!({"a": [[[]]]}), "invalid type: sequence"),
        ("outputs", json!([{"name": "y"}]), "there is none of that name; outputs are `x`, `n`"),
        ("outputs", json!([{"name": "x"}, {"name": "x"}]), "asked for twice"),
        (
            "outputs",
            json!([{"name": "x", "parameters": {"shared_memory_region": "a"}}]),
            "shared memory is not offered",
        ),
    ] {
        let mut request = request();
        request[key] = value;
        let error = infer(server, &request).error();
        assert!(error.contains(wanted), "{key}: {error}");
    }
}

#[test]
fn hostile_bodies_and_paths_get_a_4xx_in_the_protocols_shape() {
    let server = server();
    let path = "/v2/models/te.st.net/infer";
    for body in ["", "{", "[]", "null", "{\"inputs\": NaN}", "\u{0}", "{\"inputs\": [], \"inputs\": []}"] {
        assert_eq!(post(server, path, body).status, 400, "{body:?}");
    }
    assert!(post(server, path, &"[".repeat(4000)).error().contains("the request is not what it should be"));
    assert_eq!(post(server, path, &" ".repeat(5000)).status, 413);
    assert_eq!(send(server, &format!("POST {path} HTTP/1.1\r\nContent-Encoding: gzip\r\n"), b"{}").status, 415);
    assert_eq!(get(server, path).error(), "this path is not asked with that method");
    for path in
        ["/v2/models/other", "/v2/models/te.st.net/versions/2", "/v2/models/..%2f..%2fetc", "/v2/x/y", "/v2/models"]
    {
        assert_eq!(get(server, path).status, 404, "{path}");
        assert!(!get(server, path).error().is_empty());
    }
    assert_eq!(get(server, "/v2/models/%ff%fe").status, 400);
    assert_eq!(infer(server, &request()).status, 200);
}

#[test]
fn an_engine_that_panics_or_cannot_load_costs_its_request_alone() {
    let server = server();
    let mut wrong = request();
    wrong["inputs"][1]["data"] = json!([13, 0]);
    assert_eq!(infer(server, &wrong).status, 500);
    assert_eq!(infer(server, &request()).status, 200);
    let broken = post(server, "/v2/models/te.st.broken/infer", &request().to_string());
    assert_eq!(
        (broken.status, broken.json()["error"].as_str()),
        (500, Some("te.st.broken: the engine failed; see the server's log"))
    );
    assert_eq!(get(server, "/v2/models/te.st.broken/ready").status, 503);
    assert_eq!(post(server, "/v2/repository/index", "").json()[0]["state"], "UNAVAILABLE");
    let statistics = get(server, "/v2/models/te.st.net/stats").json()["model_stats"][0]["inference_stats"].clone();
    assert_eq!((&statistics["success"]["count"], &statistics["fail"]["count"]), (&json!(1), &json!(1)));
    let all = get(server, "/v2/models/stats").json();
    assert_eq!(all["model_stats"].as_array().unwrap().len(), 2);
}

#[test]
fn a_model_larger_than_the_budget_is_refused() {
    let server = serve(Limits { memory: 59, ..Limits::default() }, &Arc::new(AtomicBool::new(true)));
    let reply = infer(server, &request());
    assert_eq!(
        (reply.status, reply.json()["error"].as_str()),
        (507, Some("te.st.net takes 60 bytes of memory, more than the server's 59"))
    );
}

#[test]
fn requests_beyond_the_limit_are_told_to_come_back() {
    let limits = Limits { requests: 1, arrival: Duration::from_millis(600), ..Limits::default() };
    let server = serve(limits, &Arc::new(AtomicBool::new(true)));
    // A client that never sends its body holds the only place until its time is up.
    let mut slow = TcpStream::connect(server).unwrap();
    slow.write_all(b"POST /v2/models/te.st.net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let refused = infer(server, &request());
    assert_eq!(refused.status, 429);
    assert!(refused.head.contains("retry-after: 1"));
    let mut start = [0; 12];
    slow.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 408");
    assert_eq!(infer(server, &request()).status, 200);
}
