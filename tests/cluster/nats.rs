//! A NATS server of our own, and just enough of its protocol to send it what no worker and no coordinator would.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vldm_tests::python;

/// A server with JetStream; it is ended when this is dropped.
pub struct Nats {
    child: Child,
    folder: PathBuf,
    port: u16,
}

impl Nats {
    /// Starts a server that keeps its streams in `folder`; `None` where it cannot be had.
    pub fn start(folder: &Path) -> Option<Self> {
        let folder = folder.join("nats");
        fs::create_dir_all(&folder).unwrap();
        Some(Self::on(folder, None, python::nats_server()?))
    }

    fn on(folder: PathBuf, port: Option<u16>, program: &Path) -> Self {
        let mut server = Command::new(program);
        let port = port.map_or("-1".to_owned(), |port| port.to_string());
        server.args(["-js", "-a", "127.0.0.1", "-p", &port, "-sd"]).arg(&folder);
        server.arg("--ports_file_dir").arg(&folder).stdout(Stdio::null()).stderr(Stdio::null());
        let child = server.spawn().unwrap();
        let ports = folder.join(format!("nats-server_{}.ports", child.id()));
        let began = Instant::now();
        let port = loop {
            let found = fs::read(&ports).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            let url = found.and_then(|found| Some(found["nats"][0].as_str()?.to_owned()));
            if let Some(url) = url {
                break url.rsplit(':').next().unwrap().parse().unwrap();
            }
            assert!(began.elapsed() < Duration::from_mins(1), "no NATS server");
            std::thread::sleep(Duration::from_millis(5));
        };
        Self { child, folder, port }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends it as a crash would, and starts it again.
    pub fn crash(&mut self) {
        self.kill();
        *self = Self::on(self.folder.clone(), Some(self.port), python::nats_server().unwrap());
    }

    /// Is away for a while, in which `meanwhile` begins.
    pub fn away(&mut self, time: Duration, meanwhile: impl FnOnce() + Send) {
        self.kill();
        std::thread::scope(|scope| {
            scope.spawn(meanwhile);
            std::thread::sleep(time);
            *self = Self::on(self.folder.clone(), Some(self.port), python::nats_server().unwrap());
        });
    }

    fn kill(&mut self) {
        // It may have ended.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }

    /// Publishes a message.
    pub fn publish(&self, subject: &str, payload: &[u8]) {
        self.talk(subject, None, payload);
    }

    /// Asks JetStream.
    pub fn ask(&self, subject: &str, payload: &str) -> Value {
        self.talk(subject, Some("_INBOX.test"), payload.as_bytes()).unwrap()
    }

    fn talk(&self, subject: &str, reply: Option<&str>, payload: &[u8]) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let subscribe = reply.map_or(String::new(), |inbox| format!("SUB {inbox} 1\r\n"));
        let head = format!(
            "CONNECT {{\"verbose\":false}}\r\n{subscribe}PUB {subject} {} {}\r\n",
            reply.unwrap_or_default(),
            payload.len()
        );
        stream.write_all(&[head.as_bytes(), payload, b"\r\nPING\r\n"].concat()).unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the server hung up");
            if line.starts_with("PONG") && reply.is_none() {
                return None;
            }
            if line.starts_with("MSG") {
                let size = line.split_whitespace().last().unwrap().parse().unwrap();
                let mut body = vec![0; size];
                reader.read_exact(&mut body).unwrap();
                return Some(serde_json::from_slice(&body).unwrap());
            }
        }
    }

    /// The one name that begins with `prefix` among the consumers of a stream, without it; waits until there is one.
    pub fn consumer(&self, stream: &str, prefix: &str) -> String {
        let began = Instant::now();
        loop {
            let names = self.ask(&format!("$JS.API.CONSUMER.NAMES.{stream}"), "");
            let names: Vec<&str> =
                names["consumers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            if let Some(name) = names.iter().find_map(|name| name.strip_prefix(prefix)) {
                return name.to_owned();
            }
            assert!(began.elapsed() < Duration::from_mins(1), "{names:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}
