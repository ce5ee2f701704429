//! A server in a process of its own, and the least of HTTP that it takes to ask it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use vldm_tests::program::command;

/// `vldm serve`, ended when it is dropped.
pub struct Server {
    child: Child,
    /// Address and port.
    pub address: String,
}

/// What the server answered; status 0 when it closed the connection.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    head: String,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    }
}

impl Server {
    /// Starts a server of one plan, with its jobs in `folder`, and waits until it takes work.
    pub fn start(folder: &Path, plan: &Path, more: &[&str]) -> Self {
        let jobs = folder.join("jobs");
        Self::run(&[&[plan.to_str().unwrap(), "--folder", jobs.to_str().unwrap()], more].concat())
    }

    /// Starts a server with these arguments on a free port, and waits until it takes work.
    pub fn run(more: &[&str]) -> Self {
        let server = Self::spawn(more);
        while server.get("/health/ready").status != 200 {
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Starts a server with these arguments on a free port.
    pub fn spawn(more: &[&str]) -> Self {
        let mut args = vec!["--json", "serve", "--listen", "127.0.0.1:0", "--threads", "1"];
        args.extend(more);
        let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut said, mut line) = (String::new(), String::new());
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended: {said}");
            said += &line;
            let listens =
                serde_json::from_str::<Value>(&line).ok().and_then(|l| Some(l["listens"].as_str()?.to_owned()));
            if let Some(address) = listens {
                break address;
            }
        };
        // A log that nobody reads would stop the server.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address }
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end; its exit code.
    pub fn end(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().unwrap().code()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &["Content-Type: application/json"], body.to_string().as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let length = format!("Content-Length: {}", body.len());
        let first = format!("{method} {path} HTTP/1.1");
        let lines = [&[&*first, "Host: test", "Connection: close"][..], headers, &[&*length, "\r\n"]].concat();
        let head = lines.join("\r\n");
        // A server that refuses a request early need not read all of it.
        let _sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut bytes = Vec::new();
        let _read = stream.read_to_end(&mut bytes);
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Answer { status: 0, head: String::new(), body: bytes };
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[end + 4..].to_vec();
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            body = joined(&body);
        }
        Answer { status, head, body }
    }
}

/// The chunks of a body.
fn joined(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        all.extend(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[(end + 4 + size).min(bytes.len())..];
    }
    all
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}
