//! `vldm serve`, as its clients and its operators see it: the program, a real engine, a real disk, real sockets.

mod deploy;
pub mod http;
mod openapi;
mod sdk;
mod tls;
mod traces;
mod triton;
mod webhooks;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vldm_tests::bundle;
use vldm_tests::program::vldm;

use self::http::{Answer, Server};

/// The plan of all tests here, with so many steps of the first window.
fn plan(folder: &Path, steps: usize) -> PathBuf {
    let plan = json!({
        "version": 1, "bundle": bundle::of("tiny"), "seed": 7, "noise": "counter", "size": [12, 20],
        "stages": [
            {"op": "conditions", "labels": {"night": 1, "crowd": 3}},
            {"op": "keyframes", "frames": 4, "steps": steps},
            {"op": "predict", "chunks": [{}, {"labels": {"night": 0}}], "steps": 6, "context_guidance": 1.5},
            {"op": "interpolate", "steps": 4},
            {"op": "decode", "window": 8, "halo": 2},
            {"op": "upsample", "steps": 2, "noise_level": 20, "window": 8},
            {"op": "video", "fps": 8}
        ]
    });
    let path = folder.join("tiny.json");
    fs::write(&path, plan.to_string()).unwrap();
    path
}

/// What `vldm run` makes of it.
fn whole(folder: &Path, plan: &Path, set: &[&str]) -> Vec<u8> {
    let out = folder.join("whole.mp4");
    let mut args = vec!["run", plan.to_str().unwrap(), "-o", out.to_str().unwrap(), "--threads", "1"];
    args.extend(set.iter().flat_map(|s| ["--set", s]));
    vldm(args).expect(0);
    fs::read(out).unwrap()
}

fn id(answer: &Answer) -> String {
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn ended(server: &Server, id: &str) -> Value {
    let began = Instant::now();
    loop {
        let video = server.get(&format!("/v1/videos/{id}")).expect(200).json();
        if !["queued", "in_progress"].contains(&video["status"].as_str().unwrap()) {
            return video;
        }
        assert!(began.elapsed() < Duration::from_mins(4), "{video}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn jobs_of_a_server_that_is_killed_end_with_the_bytes_of_a_run() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 6);
    let expected = whole(scratch.path(), &plan, &[]);
    let began = Instant::now();
    whole(scratch.path(), &plan, &[]);
    let length = began.elapsed();
    let mut server = Server::start(scratch.path(), &plan, &[]);
    let jobs: Vec<String> = (0..2).map(|_| id(&server.post("/v1/videos", &json!({})).expect(200))).collect();
    for i in 1..=6u32 {
        std::thread::sleep(length.mul_f64((f64::from(i) * 0.618_034).fract() * 0.8));
        server.kill();
        server = Server::start(scratch.path(), &plan, &[]);
    }
    for job in &jobs {
        let video = ended(&server, job);
        assert_eq!((&video["status"], &video["progress"]), (&json!("completed"), &json!(100)), "{video}");
        assert!(server.get(&format!("/v1/videos/{job}/content")).expect(200).body == expected);
    }
    let part = server.send("GET", &format!("/v1/videos/{}/content", jobs[0]), &["Range: bytes=4-7"], b"").expect(206);
    assert_eq!(part.body, expected[4..8]);
}

#[test]
fn a_video_is_continued_with_the_bytes_of_a_longer_plan() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 3);
    let server = Server::start(scratch.path(), &plan, &[]);
    let first = id(&server.post("/v1/videos", &json!({})).expect(200));
    assert_eq!(server.post("/v1/videos/extensions", &json!({"video": {"id": first}})).status, 409, "it is not done");
    ended(&server, &first);
    let scenario = json!([{"labels": {"night": 1}}]);
    let more = server.post("/v1/videos/extensions", &json!({"video": {"id": first}, "scenario": scenario})).expect(200);
    let remix = server.post(&format!("/v1/videos/{first}/remix"), &json!({"seed": 8})).expect(200);
    assert_eq!(remix.json()["remixed_from_video_id"], first.as_str());
    let (more, remix) = (id(&more), id(&remix));
    assert_eq!(ended(&server, &more)["status"], "completed");
    let got = server.get(&format!("/v1/videos/{more}/content")).expect(200).body;
    let chunks = r#"predict.chunks=[{}, {"labels": {"night": 0}}, {"labels": {"night": 1}}]"#;
    assert!(got == whole(scratch.path(), &plan, &[chunks]));
    ended(&server, &remix);
    let got = server.get(&format!("/v1/videos/{remix}/content")).expect(200).body;
    assert!(got == whole(scratch.path(), &plan, &["seed=8"]));
    // The second and the third job had networks of the first one.
    let numbers = server.get("/metrics").text();
    let number = |name: &str| -> u64 {
        let line =
            numbers.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {numbers}"));
        line.trim().parse().unwrap()
    };
    assert!(number("vldm_networks_loaded_total") < number("vldm_networks_reused_total"), "{numbers}");
    assert_eq!(number("vldm_networks_bytes{state=\"used\"}"), 0);
    assert!(
        number("vldm_networks_bytes{state=\"idle\"}") > 10_000 && number("vldm_resident_memory_bytes") > 10_000_000
    );
    assert!(numbers.contains("vldm_stage_seconds_total{model=\"tiny\",stage=\"keyframes\"}"));
    let events = server.get(&format!("/v1/videos/{remix}/events")).expect(200).text();
    assert!(events.starts_with("event: done\nid: "), "{events}");
    let list = server.get("/v1/videos?limit=2&order=asc").expect(200).json();
    assert_eq!((&list["first_id"], &list["last_id"], &list["has_more"]), (&json!(first), &json!(more), &json!(true)));
    let rest = server.get(&format!("/v1/videos?order=asc&after={more}")).expect(200).json();
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&json!(remix), &json!(false)));
    for variant in ["thumbnail", "spritesheet"] {
        let picture = server.get(&format!("/v1/videos/{first}/content?variant={variant}")).expect(200).body;
        assert!(picture.starts_with(b"\x89PNG"));
    }
}

#[test]
fn what_is_cancelled_or_deleted_frees_the_engine_and_stays_so_after_a_kill() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 900);
    let mut server = Server::start(scratch.path(), &plan, &[]);
    let running = id(&server.post("/v1/videos", &json!({})).expect(200));
    let next = id(&server.post("/v1/videos", &json!({"steps": 1, "seconds": 2})).expect(200));
    while server.get(&format!("/v1/videos/{running}")).expect(200).json()["status"] != "in_progress" {
        std::thread::sleep(Duration::from_millis(5));
    }
    let waits = server.get(&format!("/v1/videos/{next}")).expect(200).json();
    assert_eq!((&waits["status"], &waits["queue_position"]), (&json!("queued"), &json!(0)));
    let cancelled = server.post(&format!("/v1/videos/{running}/cancel"), &json!({})).expect(200).json();
    assert_eq!(cancelled["status"], "cancelled");
    server.kill();
    let server = Server::start(scratch.path(), &plan, &[]);
    assert_eq!(ended(&server, &next)["status"], "completed", "nothing runs before it");
    assert_eq!(ended(&server, &running)["status"], "cancelled");
    assert_eq!(server.post(&format!("/v1/videos/{next}/cancel"), &json!({})).status, 409, "it has ended");
    let gone = server.send("DELETE", &format!("/v1/videos/{next}"), &[], b"").expect(200).json();
    assert_eq!(gone, json!({"id": next, "object": "video.deleted", "deleted": true}));
    assert_eq!(server.get(&format!("/v1/videos/{next}")).status, 404);
    let folders = || fs::read_dir(scratch.path().join("jobs/videos")).unwrap().count();
    // The folder of the cancelled job goes when the engine has let go of it.
    let began = Instant::now();
    while folders() > 1 && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(folders() <= 1);
}

#[test]
fn a_server_that_is_asked_to_end_keeps_its_job_for_the_next_one() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 60);
    let server = Server::start(scratch.path(), &plan, &[]);
    let job = id(&server.post("/v1/videos", &json!({"seconds": 2})).expect(200));
    while server.get(&format!("/v1/videos/{job}")).expect(200).json()["progress"] == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(server.end(), Some(0), "it ends in order");
    let server = Server::start(scratch.path(), &plan, &[]);
    assert_eq!(ended(&server, &job)["status"], "completed");
    let got = server.get(&format!("/v1/videos/{job}/content")).expect(200).body;
    assert!(got == whole(scratch.path(), &plan, &["predict.chunks=[{}]"]));
}

#[test]
fn keys_are_asked_for_and_keep_videos_apart() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 1);
    let file = scratch.path().join("keys");
    let key = |name| vldm(["keys", "new", file.to_str().unwrap(), name]).expect(0).stdout.trim().to_owned();
    let (a, b) = (key("a"), key("b"));
    let server = Server::start(scratch.path(), &plan, &["--keys", file.to_str().unwrap(), "--max-queue-of-key", "1"]);
    let bearer = |key: &str| format!("Authorization: Bearer {key}");
    for header in ["Accept: */*", "Authorization: Basic Og==", "Authorization: Bearer", "Authorization: Bearer x"] {
        for path in ["/v1/videos", "/v1/videos/x", "/metrics", "/v1/models", "/v2/models/tiny.keyframes"] {
            assert_eq!(server.send("GET", path, &[header], b"").status, 401, "{path}");
        }
    }
    let post = |key: &str| {
        let headers = [&*bearer(key), "Content-Type: application/json", "Idempotency-Key: one"];
        server.send("POST", "/v1/videos", &headers, b"{}")
    };
    let first = id(&post(&a).expect(200));
    assert_eq!(id(&post(&a).expect(200)), first, "the same request makes one job");
    let other = [&*bearer(&a), "Content-Type: application/json", "Idempotency-Key: one"];
    assert_eq!(server.send("POST", "/v1/videos", &other, b"{\"seed\": 1}").status, 409);
    assert_ne!(id(&post(&b).expect(200)), first);
    let seen = |key: &str| server.send("GET", &format!("/v1/videos/{first}"), &[&bearer(key)], b"").status;
    assert_eq!((seen(&a), seen(&b)), (200, 404));
    assert_eq!(server.get("/health/ready").status, 200);
}

#[test]
fn hostile_requests_are_refused_and_the_server_lives_on() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 900);
    let limits = ["--max-body", "4096", "--max-frames", "100", "--max-queue", "1"];
    let server = Server::start(scratch.path(), &plan, &limits);
    let json = |body: &str| server.send("POST", "/v1/videos", &["Content-Type: application/json"], body.as_bytes());
    for (body, status) in [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        ("{\"seed\": 1e999}", 400),
        (&"[".repeat(4000), 400),
        ("{\"path\": \"/etc/passwd\"}", 422),
        ("{\"model\": \"../tiny\"}", 404),
        ("{\"prompt\": \"a cat\"}", 422),
        ("{\"labels\": {\"nope\": 1}}", 422),
        ("{\"labels\": {\"night\": 99999}}", 422),
        ("{\"seed\": -1}", 422),
        ("{\"size\": \"99999999999x99999999999\"}", 422),
        ("{\"size\": \"0x0\"}", 422),
        ("{\"seconds\": 1e300}", 413),
        ("{\"seconds\": 3600}", 413),
        ("{\"seconds\": 0.1}", 422),
        ("{\"steps\": 4000000000}", 422),
        ("{\"input_reference\": {\"image_url\": \"http://127.0.0.1/x.png\"}}", 422),
        ("{\"input_reference\": {\"image_url\": \"data:image/png;base64,AAAA\"}}", 422),
        (&format!("{{\"prompt\": \"{}\"}}", "x".repeat(8000)), 413),
    ] {
        let answer = json(body);
        let head: String = body.chars().take(60).collect();
        assert_eq!(answer.status, status, "{head}: {}", answer.text());
        let error = &answer.json()["error"];
        assert!(error["message"].is_string() && error["code"].is_string() && error["type"].is_string(), "{error}");
        assert!(!answer.text().contains(scratch.path().to_str().unwrap()), "no path of the server is told");
    }
    for (kind, body) in [
        ("multipart/form-data", "x"),
        ("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data\r\n\r\nx"),
        ("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"seed\"\r\n\r\nx\r\n--b--"),
        ("text/xml", "<a/>"),
    ] {
        let answer = server.send("POST", "/v1/videos", &[&format!("Content-Type: {kind}")], body.as_bytes());
        assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
    }
    for path in
        ["/v1/videos/..%2f..%2fjobs.redb/content", "/v1/videos/%00", "/../../etc/passwd", "/v1/videos/x/content"]
    {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(server.get("/v1/videos?limit=0").status, 422);
    assert_eq!(server.get("/v1/videos?colour=red").status, 400);
    let large = format!("X-Large: {}", "x".repeat(1 << 20));
    assert!([0, 431].contains(&server.send("GET", "/v1/videos", &[&large], b"").status), "a header bomb");
    assert_eq!(json("{}").status, 200);
    let full = json("{}");
    assert_eq!((full.status, full.header("retry-after")), (429, Some("10".to_owned())));
    for path in ["/v1/videos/edits", "/v1/videos/characters"] {
        assert_eq!(server.post(path, &serde_json::json!({})).status, 501);
    }
    let folders = fs::read_dir(scratch.path().join("jobs/videos")).unwrap().count();
    assert!(folders <= 1, "what is refused leaves nothing");
}

#[test]
fn a_request_that_is_answered_early_leaves_its_connection_for_the_next() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 1);
    let server = Server::start(scratch.path(), &plan, &[]);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    for _ in 0..3 {
        stream.write_all(b"POST /v1/videos/edits HTTP/1.1\r\nHost: test\r\nContent-Length: 90000\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(30));
        stream.write_all(&vec![b'x'; 90_000]).unwrap();
        let mut answer = Vec::new();
        let mut bytes = [0; 4096];
        while !answer.ends_with(b"}") {
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "the connection ended after {}", String::from_utf8_lossy(&answer));
            answer.extend(&bytes[..n]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 501"), "{}", String::from_utf8_lossy(&answer));
    }
}
